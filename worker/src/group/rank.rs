//! A rank on its thread: loaded, connected with the others, checked, and then led or following until it ends.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use foggara_kernels::ThreadPool;
use foggara_kernels::collective::{AbortHandle, Collective, Solo, SpinPolicy, shm, tcp};
use foggara_kernels::cuda::DeviceMatrix;
use foggara_models::{Checkpoint, Cut, ExpertMap, Quantize, RankSlice, Shape};
use foggara_proto::wire::worker as wire;

use super::adapters::AdapterLoader;
use super::failure::{Failure, failed};
use super::repack::Repacker;
use super::{GroupHost, lock};
use crate::adapters::Adapters;
use crate::capabilities::available_memory;
use crate::decoder::{BlockTables, CacheConfig, Comms, Decoder, DeviceDecoder, Forward, Part};
use crate::engine::{Engine, EngineEvent, OwnUse, Told, follow, kv_type, lead};
use crate::loading::Loading;
use crate::weights::{LoadError, Mapped, OnCpu, OnDevice, RankWeights, Residence};

/// How long ranks wait for each other after they have loaded.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// How an assignment wants the model cut.
fn cut_of(assign: &wire::Assign, model: &Checkpoint) -> Result<Cut, String> {
    let degree = |n: u32| (n as usize).max(1);
    let shape = match &assign.shape {
        Some(s) => Shape { tp: degree(s.tp), dp: degree(s.dp), pp: degree(s.pp), ep: degree(s.ep) },
        None => Shape::tensor(assign.size as usize),
    };
    // Layers without experts are not named.
    let mut named = assign.experts.iter();
    let mut experts = ExpertMap::default();
    if !assign.experts.is_empty() {
        experts.0 = vec![Vec::new(); model.spec().layers.len()];
        for (l, _) in model.spec().moe_layers() {
            let parts = named.next().ok_or("experts: fewer layers than the model has with experts")?;
            let part = |part: &u32| u16::try_from(*part).map_err(|_| format!("experts: part {part}"));
            experts.0[l] = parts.part.iter().map(part).collect::<Result<_, _>>()?;
        }
    }
    Ok(Cut { shape, weights: assign.rank_weights.clone(), experts })
}

/// What is told of a rank that is ready.
pub(super) fn ready(assign: &wire::Assign) -> wire::worker_message::Message {
    let (group, epoch, rank) = (assign.group, assign.epoch, assign.rank);
    wire::worker_message::Message::Ready(wire::RankReady { group, epoch, rank })
}

/// A rank's weights, where it computes.
enum Loaded {
    Cpu(RankWeights),
    Device(RankWeights<DeviceMatrix>),
}

impl Loaded {
    fn bytes(&self) -> usize {
        match self {
            Self::Cpu(weights) => weights.bytes(),
            Self::Device(weights) => weights.bytes(),
        }
    }

    /// Those that lie in files; none does twice.
    fn take_mapped(&mut self) -> Vec<Mapped> {
        match self {
            Self::Cpu(weights) => std::mem::take(&mut weights.mapped),
            Self::Device(weights) => std::mem::take(&mut weights.mapped),
        }
    }
}

/// A rank that is loaded and connected.
struct Prepared {
    engine: Engine,
    slice: RankSlice,
    /// Its weights that lie in files.
    mapped: Vec<Mapped>,
    /// What its cache can come to.
    cache_bytes: usize,
}

/// A rank on its thread.
pub(super) struct Rank {
    pub(super) host: GroupHost,
    pub(super) assign: wire::Assign,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) abort: Arc<Mutex<Option<AbortHandle>>>,
}

impl Rank {
    /// Runs it, and tells the cluster how it ended.
    pub(super) fn live(
        &self,
        events: &mpsc::Receiver<EngineEvent>,
        wanted: mpsc::Receiver<wire::LoadAdapter>,
    ) {
        // A panic in a kernel must be told like any other failure, not leave the group waiting.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.run(events, wanted)));
        let panicked = || Failure::from("this rank panicked; its log says where".to_owned());
        let outcome = outcome.unwrap_or_else(|_| Err(panicked()));
        let lost = outcome.as_ref().err().and_then(|failure| failure.lost.clone());
        let mut slot = lock(&self.host.held);
        let still_held = slot.as_ref().is_some_and(|held| held.is(self.assign.group, self.assign.epoch));
        if still_held && !self.cancelled.load(Ordering::SeqCst) {
            *slot = None;
            drop(slot);
            let failure = outcome.err().unwrap_or_else(|| Failure::from("the rank ended".to_owned()));
            let reason = &failure.reason;
            tracing::error!(group = self.assign.group, rank = self.assign.rank, reason, "rank failed");
            self.host.tell(failed(&self.assign, &failure));
        }
        // Also where nobody waits for this rank any more. After the news, which are to be sent before the end.
        if let Some(error) = lost {
            self.host.lost.send_replace(Some(*error));
        }
    }

    fn run(
        &self,
        events: &mpsc::Receiver<EngineEvent>,
        wanted: mpsc::Receiver<wire::LoadAdapter>,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        let Prepared { mut engine, slice, mapped, cache_bytes } = self.prepare()?;
        engine.check()?;
        let seconds = started.elapsed().as_secs_f64();
        {
            let mut slot = lock(&self.host.held);
            let Some(held) = slot.as_mut().filter(|held| held.is(self.assign.group, self.assign.epoch))
            else {
                return Ok(());
            };
            held.ready = true;
        }
        tracing::info!(group = self.assign.group, rank = self.assign.rank, seconds, "ready");
        self.host.tell(ready(&self.assign));
        self.load_adapters(&engine, slice, wanted)?;
        self.repack(mapped, cache_bytes)?;
        let outcome = if self.assign.rank == 0 { lead(engine, events) } else { follow(engine) };
        Ok(outcome?)
    }

    /// Starts to load what is wanted of adapters.
    fn load_adapters(
        &self,
        engine: &Engine,
        slice: RankSlice,
        wanted: mpsc::Receiver<wire::LoadAdapter>,
    ) -> Result<(), Failure> {
        let loader = AdapterLoader {
            group: self.assign.group,
            epoch: self.assign.epoch,
            rank: self.assign.rank,
            spec: engine.decoder.spec().clone(),
            slice,
            dp: engine.decoder.shape().dp,
            on_gpu: self.host.device.is_some(),
            models: self.host.models.clone(),
            adapters: engine.adapters.clone(),
            news: self.host.news.clone(),
            cancelled: Arc::clone(&self.cancelled),
        };
        let thread = std::thread::Builder::new().name(format!("adapters-{}", self.assign.rank));
        let started = thread.spawn(move || loader.run(&wanted));
        started.map(drop).map_err(|error| format!("starting a thread: {error}").into())
    }

    /// Starts to make panels of weights that lie in files, unless they are to stay there.
    fn repack(&self, mapped: Vec<Mapped>, cache_bytes: usize) -> Result<(), Failure> {
        let repacker = Repacker {
            group: self.assign.group,
            rank: self.assign.rank,
            mapped,
            reserve: cache_bytes as u64,
            cancelled: Arc::clone(&self.cancelled),
        };
        if self.host.residence != Residence::Auto || repacker.bytes() == 0 {
            return Ok(());
        }
        let thread = std::thread::Builder::new().name(format!("repack-{}", self.assign.rank));
        thread
            .spawn(move || repacker.run())
            .map(drop)
            .map_err(|error| format!("starting a thread: {error}").into())
    }

    /// Loads the slice and connects the group.
    fn prepare(&self) -> Result<Prepared, Failure> {
        let a = &self.assign;
        let (rank, size) = (a.rank as usize, a.size as usize);
        if rank >= size {
            return Err(format!("rank {rank} of {size}").into());
        }
        let goes_on = || !self.cancelled.load(Ordering::SeqCst);
        let model = self.host.models.open(&a.manifest, Path::new(&a.model_path), &goes_on)?;
        let quantize: Quantize = if a.quantize.is_empty() { Quantize::None } else { a.quantize.parse()? };
        if quantize.needs_gpu() && self.host.device.is_none() {
            return Err(LoadError::NeedsGpu.into());
        }
        let plan = model.slices(&cut_of(a, &model)?, quantize).map_err(|e| e.to_string())?;
        if plan.shape.ranks() != size {
            let reason = format!("{} takes {} ranks, the group has {size}", plan.shape, plan.shape.ranks());
            return Err(reason.into());
        }
        let pool = ThreadPool::start(&self.host.threads, self.spin() != SpinPolicy::Park);
        let mut loading = Loading::new(a, self.host.read_speed);
        let mut progress = |loaded_bytes, total_bytes| {
            if let Some(told) = loading.at(loaded_bytes, total_bytes) {
                self.host.tell(wire::worker_message::Message::Progress(told));
            }
            goes_on()
        };
        let loaded = match &self.host.device {
            None => {
                let store = OnCpu(self.host.residence);
                let weights =
                    RankWeights::load_to(&store, &model, &plan, rank, quantize, &pool, &mut progress);
                weights.map(Loaded::Cpu)
            }
            Some(device) => {
                let store = OnDevice(device.clone());
                let weights =
                    RankWeights::load_to(&store, &model, &plan, rank, quantize, &pool, &mut progress);
                weights.map(Loaded::Device)
            }
        };
        let mut loaded = loaded?;
        let all_loaded = loading.end(&a.model_path, loaded.bytes());
        self.host.tell(wire::worker_message::Message::Progress(all_loaded));
        if let Loaded::Device(weights) = &loaded {
            tracing::info!(group = a.group, rank, held = weights.held(), "weights on the GPU");
        }
        let all = self.connect(rank, size, 0, None)?;
        *lock(&self.abort) = Some(all.abort_handle());
        let mut comms = Comms::join(plan.shape, all, |part| self.join(rank, part))?;
        *lock(&self.abort) = Some(comms.abort_handle());
        if self.cancelled.load(Ordering::SeqCst) {
            return Err("cancelled".to_owned().into());
        }
        let cache = CacheConfig {
            blocks: a.kv_blocks as usize,
            block_size: a.block_size as usize,
            ty: kv_type(&a.kv_dtype, &model)?,
        };
        let slice = &plan.ranks[rank];
        // What a CPU works with is small, and in no one's way.
        let working = match &loaded {
            Loaded::Cpu(_) => 0,
            Loaded::Device(weights) => {
                let (block_size, rows) = (cache.block_size, a.max_step_rows as usize);
                DeviceDecoder::working_bytes(model.spec(), slice, weights, block_size, rows)?
            }
        };
        let cache_bytes = cache.bytes(model.spec(), slice);
        self.check_memory(cache_bytes.and_then(|bytes| bytes.checked_add(working as usize)))?;
        let mapped = loaded.take_mapped();
        let adapters = Adapters::default();
        let decoder: Box<dyn Forward> = match (loaded, &self.host.device) {
            (Loaded::Cpu(weights), _) => {
                let adapters = adapters.clone();
                let decoder = Decoder::new(model.spec(), &plan, rank, weights, cache, adapters, pool);
                Box::new(decoder.map_err(|e| e.to_string())?)
            }
            (Loaded::Device(weights), Some(device)) => {
                let rows = a.max_step_rows as usize;
                let decoder = DeviceDecoder::new(device, model.spec(), &plan, rank, weights, cache, rows);
                let mut decoder = decoder?;
                if let Some(handle) = decoder.connect(&mut comms).map_err(|e| e.to_string())? {
                    // A device that waits for a rank that is gone must be told, too.
                    *lock(&self.abort) = Some(AbortHandle::all(vec![comms.abort_handle(), handle]));
                }
                Box::new(decoder)
            }
            (Loaded::Device(_), None) => unreachable!("loaded to a device"),
        };
        let engine = Engine {
            decoder,
            tables: BlockTables::new(plan.shape.dp, a.kv_blocks as usize),
            comms,
            adapters,
            block_size: a.block_size as usize,
            max_rows: a.max_step_rows as usize,
            own: OwnUse::default(),
            told: Told::default(),
        };
        Ok(Prepared { engine, slice: slice.clone(), mapped, cache_bytes: cache_bytes.unwrap_or(0) })
    }

    /// Memory of the cache is taken as blocks are first used: what does not fit must be said now, not found out then.
    fn check_memory(&self, needed: Option<usize>) -> Result<(), Failure> {
        let a = &self.assign;
        let available = match &self.host.device {
            None => available_memory(),
            Some(device) => device.driver().memory()?.free,
        };
        if needed.is_some_and(|needed| available == 0 || needed as u64 <= available) {
            return Ok(());
        }
        let blocks = format!("{} KV blocks of {} positions and buffers", a.kv_blocks, a.block_size);
        let needed = needed.map_or("more bytes than there are".into(), |needed| format!("{needed} bytes"));
        Err(format!("{blocks} take {needed}, and {available} are available: lower the KV tokens").into())
    }

    /// Spinning only pays while every waiting thread has a core to itself.
    fn spin(&self) -> SpinPolicy {
        let all_have_one = self.assign.threads_on_host as usize <= self.host.cores;
        if !all_have_one { SpinPolicy::Park } else { SpinPolicy::default() }
    }

    /// Joins a part of the group that has collectives of its own.
    fn join(&self, rank: usize, part: &Part) -> Result<Box<dyn Collective>, String> {
        let place = part.ranks.iter().position(|member| *member == rank);
        let place = place.ok_or_else(|| format!("rank {rank} is not in {part:?}"))?;
        self.connect(place, part.ranks.len(), part.number, Some(&part.ranks))
    }

    /// Rank `rank` of `size` in part `part` of the group (0: the whole), whose members are `members` of it.
    fn connect(
        &self,
        rank: usize,
        size: usize,
        part: u64,
        members: Option<&[usize]>,
    ) -> Result<Box<dyn Collective>, String> {
        let a = &self.assign;
        if size == 1 {
            return Ok(Box::<Solo>::default());
        }
        let key: [u8; 16] =
            a.group_key[..].try_into().map_err(|_| "the group key is not 16 bytes".to_string())?;
        if a.collective == "shm" {
            let unique: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
            let part = if part == 0 { String::new() } else { format!("-{part:x}") };
            let config = shm::ShmConfig {
                spin: self.spin(),
                connect_timeout: CONNECT_TIMEOUT,
                cancelled: Arc::clone(&self.cancelled),
                ..shm::ShmConfig::new(format!("foggara-{}-{}-{unique}{part}", a.group, a.epoch), rank, size)
            };
            return shm::connect(&config).map_err(|e| e.to_string());
        }
        let peers: Vec<SocketAddr> = a
            .peers
            .iter()
            .map(|peer| crate::run::resolve(peer).map_err(|e| format!("collective address `{peer}`: {e}")))
            .collect::<Result<_, _>>()?;
        let peers = match members {
            None => peers,
            Some(members) => members.iter().filter_map(|member| peers.get(*member).copied()).collect(),
        };
        let listener = self.host.listener.try_clone().map_err(|e| format!("collective listener: {e}"))?;
        let config = tcp::TcpConfig {
            rank,
            group_key: if part == 0 { key } else { tcp::key_of_part(&key, part) },
            peers,
            listener,
            spin: self.spin(),
            connect_timeout: CONNECT_TIMEOUT,
            cancelled: Arc::clone(&self.cancelled),
        };
        tcp::connect(&config).map_err(|e| e.to_string())
    }
}
