//! Collectives between GPUs, by NCCL.
//!
//! A communicator never blocks a thread inside the library: what takes long there (finding the others, connecting to them)
//! is waited for here, with a deadline, and another thread can end it with [`NcclComm::abort`]. That also ends collectives that
//! wait on the GPU for a rank that is gone. NCCL itself then may take its time, or never come back: it is given a thread of its
//! own for that, and a few seconds.
//!
//! Everything is started on the device's stream, in its order, and can be recorded. All ranks must ask for the same, in the
//! same order.

mod library;

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUstream;

use self::library::{Comm, Config, FLOAT32, Functions, IN_PROGRESS, SUCCESS, SUM, UniqueId};
use super::{Device, DeviceError, Gpu, View, ViewMut};
use crate::collective::AbortHandle;

/// How long NCCL gets to end a communicator.
const ABORT_SECONDS: u64 = 10;

/// One rank's part of a group of GPUs.
pub struct NcclComm {
    shared: Arc<Shared>,
    gpu: Gpu,
    device: Device,
    rank: usize,
    ranks: usize,
    /// How long a call may wait for the other ranks.
    patience: Duration,
}

struct Shared {
    functions: &'static Functions,
    /// Null once it was ended.
    comm: AtomicPtr<c_void>,
    /// Held during calls, which are short.
    calls: Mutex<()>,
}

/// What one rank sends to another and receives from it: addresses, and elements.
struct Part {
    to: u64,
    received: usize,
    at: u64,
    sent: usize,
}

impl NcclComm {
    /// A name for a new group: one rank makes it and tells it to all.
    ///
    /// # Errors
    /// If there is no NCCL, with how to get it.
    pub fn unique_id() -> Result<[u8; 128], DeviceError> {
        let error = |reason| DeviceError {
            device: "NCCL".into(),
            call: "ncclGetUniqueId",
            shape: String::new(),
            reason,
            lost: false,
        };
        let functions = Functions::get().map_err(error)?;
        let mut id = UniqueId { internal: [0; 128] };
        // SAFETY: the pointer is to an id.
        match unsafe { (functions.unique_id)(&raw mut id) } {
            SUCCESS => Ok(id.internal),
            answer => Err(error(functions.text(answer, ptr::null_mut()))),
        }
    }

    /// Whether `device` is one that NCCL connects, and the library is there.
    pub fn is_for(device: &Device) -> bool {
        Gpu::of(device).is_some() && Functions::get().is_ok()
    }

    /// Joins the group `id` as `rank` of `ranks`, and waits until all have come, `patience` long; later calls wait as long.
    ///
    /// # Errors
    /// If there is no NCCL, the device is no GPU, or not all ranks come in time.
    pub fn join(
        device: &Device,
        id: &[u8; 128],
        rank: usize,
        ranks: usize,
        patience: Duration,
    ) -> Result<Self, DeviceError> {
        let call = "ncclCommInitRankConfig";
        let error = |reason| {
            let shape = format!("rank {rank} of {ranks}");
            DeviceError { device: device.name(), call, shape, reason, lost: false }
        };
        let gpu = Gpu::of(device).ok_or_else(|| error("NCCL connects GPUs only".into()))?.clone();
        let functions = Functions::get().map_err(error)?;
        gpu.bind()?;
        let mut config = Config::never_blocking(functions);
        let mut comm: Comm = ptr::null_mut();
        let (of, number) = (ranks as c_int, rank as c_int);
        let id = UniqueId { internal: *id };
        // SAFETY: the context is bound; the pointers are to a handle and to a configuration of the size it says.
        let answer = unsafe { (functions.init)(&raw mut comm, of, id, number, &raw mut config) };
        let shared = Arc::new(Shared { functions, comm: AtomicPtr::new(comm), calls: Mutex::new(()) });
        let joined = Self { shared, gpu, device: device.clone(), rank, ranks, patience };
        joined.settle(call, answer, || format!("rank {rank} of {ranks}"))?;
        Ok(joined)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// All ranks.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// The sum over all ranks, in place.
    ///
    /// # Errors
    /// If the group is broken.
    pub fn all_reduce(&self, buffer: ViewMut<'_, f32>) -> Result<(), DeviceError> {
        let (at, count) = (buffer.address(), buffer.len());
        self.call(
            "ncclAllReduce",
            || self.shape(count),
            |f, comm, stream| {
                // SAFETY: the buffer has so many elements.
                unsafe { (f.all_reduce)(at as _, at as _, count, FLOAT32, SUM, comm, stream) }
            },
        )
    }

    /// What every rank has, in order of ranks.
    ///
    /// # Errors
    /// If the group is broken.
    ///
    /// # Panics
    /// If `out` is not `ranks` times as long as `from`.
    pub fn all_gather(&self, out: ViewMut<'_, f32>, from: View<'_, f32>) -> Result<(), DeviceError> {
        let (to, at, count) = (out.address(), from.address(), from.len());
        assert_eq!(out.len(), count * self.ranks, "elements of {} ranks", self.ranks);
        self.call(
            "ncclAllGather",
            || self.shape(count),
            |f, comm, stream| {
                // SAFETY: the buffers have so many elements.
                unsafe { (f.all_gather)(at as _, to as _, count, FLOAT32, comm, stream) }
            },
        )
    }

    /// This rank's part of the sum over all ranks.
    ///
    /// # Errors
    /// If the group is broken.
    ///
    /// # Panics
    /// If `from` is not `ranks` times as long as `out`.
    pub fn reduce_scatter(&self, out: ViewMut<'_, f32>, from: View<'_, f32>) -> Result<(), DeviceError> {
        let (to, at, count) = (out.address(), from.address(), out.len());
        assert_eq!(from.len(), count * self.ranks, "elements of {} ranks", self.ranks);
        self.call(
            "ncclReduceScatter",
            || self.shape(count),
            |f, comm, stream| {
                // SAFETY: the buffers have so many elements.
                unsafe { (f.reduce_scatter)(at as _, to as _, count, FLOAT32, SUM, comm, stream) }
            },
        )
    }

    /// What `root` has, to all.
    ///
    /// # Errors
    /// If the group is broken.
    ///
    /// # Panics
    /// If there is no such rank.
    pub fn broadcast(&self, buffer: ViewMut<'_, f32>, root: usize) -> Result<(), DeviceError> {
        assert!(root < self.ranks, "rank {root} of {}", self.ranks);
        let (at, count) = (buffer.address(), buffer.len());
        self.call(
            "ncclBroadcast",
            || format!("{} from rank {root}", self.shape(count)),
            |f, comm, stream| {
                // SAFETY: the buffer has so many elements.
                unsafe { (f.broadcast)(at as _, at as _, count, FLOAT32, root as c_int, comm, stream) }
            },
        )
    }

    /// Sends `sent[r]` elements to each rank `r` (one after the other in `from`) and receives `received[r]` from it.
    ///
    /// # Errors
    /// If the group is broken.
    ///
    /// # Panics
    /// If there are not as many counts as ranks, or more elements than there are in the buffers.
    pub fn exchange(
        &self,
        out: ViewMut<'_, f32>,
        received: &[usize],
        from: View<'_, f32>,
        sent: &[usize],
    ) -> Result<(), DeviceError> {
        assert_eq!((sent.len(), received.len()), (self.ranks, self.ranks), "counts for each rank");
        assert!(sent.iter().sum::<usize>() <= from.len(), "{sent:?} sent of {}", from.len());
        assert!(received.iter().sum::<usize>() <= out.len(), "{received:?} received in {}", out.len());
        let (mut to, mut at) = (out.address(), from.address());
        let shape = || format!("{sent:?} sent, {received:?} received");
        let part = |peer: usize| {
            let part = Part { to, received: received[peer], at, sent: sent[peer] };
            at += (sent[peer] * size_of::<f32>()) as u64;
            to += (received[peer] * size_of::<f32>()) as u64;
            part
        };
        // SAFETY: the buffers have so many elements, checked above.
        unsafe { self.send_and_receive(shape, part) }
    }

    /// Rank `r` has the `counts[r]` elements of `buffer` that follow those of the ranks before: gives them to all.
    ///
    /// # Errors
    /// If the group is broken.
    ///
    /// # Panics
    /// If there are not as many counts as ranks, or not as many elements as they say.
    pub fn spread(&self, buffer: ViewMut<'_, f32>, counts: &[usize]) -> Result<(), DeviceError> {
        assert_eq!(counts.len(), self.ranks, "counts for each rank");
        assert_eq!(buffer.len(), counts.iter().sum::<usize>(), "elements of all ranks");
        let own = counts[self.rank];
        let address =
            |rank: usize| buffer.address() + (counts[..rank].iter().sum::<usize>() * size_of::<f32>()) as u64;
        let at = address(self.rank);
        if counts.iter().all(|count| *count == own) {
            return self.call(
                "ncclAllGather",
                || self.shape(own),
                |f, comm, stream| {
                    // SAFETY: the buffer has so many elements of every rank, and this rank's lie where they are to be.
                    unsafe { (f.all_gather)(at as _, buffer.address() as _, own, FLOAT32, comm, stream) }
                },
            );
        }
        let part = |peer: usize| match peer == self.rank {
            true => Part { to: 0, received: 0, at, sent: 0 },
            false => Part { to: address(peer), received: counts[peer], at, sent: own },
        };
        // SAFETY: the buffer has so many elements; what is received lies beside what is sent.
        unsafe { self.send_and_receive(|| format!("{counts:?} to all"), part) }
    }

    /// Sends to every rank and receives from it, as `part` says of each in turn.
    ///
    /// # Safety
    /// The addresses have so many elements, and nothing is received where something is sent from.
    unsafe fn send_and_receive(
        &self,
        shape: impl Fn() -> String,
        mut part: impl FnMut(usize) -> Part,
    ) -> Result<(), DeviceError> {
        self.call("ncclSend and ncclRecv", shape, |f, comm, stream| {
            // SAFETY: opens a group of this thread, which is closed below whatever happens between.
            let mut answer = unsafe { (f.group_start)() };
            for peer in 0..self.ranks {
                let Part { to, received, at, sent } = part(peer);
                // SAFETY: the caller's.
                unsafe {
                    if answer == SUCCESS && sent > 0 {
                        answer = (f.send)(at as _, sent, FLOAT32, peer as c_int, comm, stream);
                    }
                    if answer == SUCCESS && received > 0 {
                        answer = (f.receive)(to as _, received, FLOAT32, peer as c_int, comm, stream);
                    }
                }
            }
            // SAFETY: closes the group.
            let closed = unsafe { (f.group_end)() };
            if answer == SUCCESS { closed } else { answer }
        })
    }

    /// An error if the group is known to be broken; asks no one.
    ///
    /// # Errors
    /// What NCCL found meanwhile: a lost connection, for one.
    pub fn health(&self) -> Result<(), DeviceError> {
        match self.state("ncclCommGetAsyncError")? {
            SUCCESS | IN_PROGRESS => Ok(()),
            answer => Err(self.error("ncclCommGetAsyncError", answer, String::new())),
        }
    }

    /// Ends the group for this rank, now, from any thread: calls that wait answer with an error, and collectives that wait on
    /// the GPU end. Nothing can be asked of it any more.
    pub fn abort(&self) {
        self.shared.abort();
    }

    /// [`abort`](Self::abort) for another thread.
    pub fn abort_handle(&self) -> AbortHandle {
        let shared = Arc::clone(&self.shared);
        AbortHandle::new(move |_| shared.abort())
    }

    fn shape(&self, count: usize) -> String {
        format!("{count} f32, rank {} of {}", self.rank, self.ranks)
    }

    /// One call of the library, and the wait for what it leaves to be done in the background.
    fn call(
        &self,
        name: &'static str,
        shape: impl Fn() -> String,
        run: impl FnOnce(&Functions, Comm, CUstream) -> c_int,
    ) -> Result<(), DeviceError> {
        let stream = self.gpu.bind()?;
        let answer = {
            let _call = self.shared.enter();
            run(self.shared.functions, self.comm(name)?, stream)
        };
        self.settle(name, answer, shape)
    }

    /// Waits until a call's work in the background is done.
    fn settle(
        &self,
        name: &'static str,
        mut answer: c_int,
        shape: impl Fn() -> String,
    ) -> Result<(), DeviceError> {
        let started = Instant::now();
        while answer == IN_PROGRESS {
            if started.elapsed() > self.patience {
                self.abort();
                let reason = format!("not all ranks came within {:.0} s", self.patience.as_secs_f64());
                return Err(self.failed(name, shape(), reason));
            }
            // Most waits are short; the first of a group takes a second.
            match started.elapsed().as_micros() {
                ..200 => std::thread::yield_now(),
                elapsed => std::thread::sleep(Duration::from_micros((elapsed / 8).min(2000) as u64)),
            }
            answer = self.state(name)?;
        }
        if answer == SUCCESS { Ok(()) } else { Err(self.error(name, answer, shape())) }
    }

    /// How the communicator is.
    fn state(&self, name: &'static str) -> Result<c_int, DeviceError> {
        let _call = self.shared.enter();
        let comm = self.comm(name)?;
        let mut state = SUCCESS;
        // SAFETY: the communicator exists while the lock is held; the pointer is to an integer.
        match unsafe { (self.shared.functions.async_error)(comm, &raw mut state) } {
            SUCCESS => Ok(state),
            answer => Ok(answer),
        }
    }

    fn comm(&self, name: &'static str) -> Result<Comm, DeviceError> {
        let comm = self.shared.comm.load(Ordering::Acquire);
        if comm.is_null() {
            return Err(self.failed(name, String::new(), "the group was ended".to_owned()));
        }
        Ok(comm)
    }

    fn error(&self, name: &'static str, answer: c_int, shape: String) -> DeviceError {
        let _call = self.shared.enter();
        let text = self.shared.functions.text(answer, self.shared.comm.load(Ordering::Acquire));
        self.failed(name, shape, text)
    }

    fn failed(&self, call: &'static str, shape: String, reason: String) -> DeviceError {
        DeviceError { device: self.device.name(), call, shape, reason, lost: false }
    }
}

impl Drop for NcclComm {
    fn drop(&mut self) {
        self.shared.abort();
    }
}

impl Shared {
    fn enter(&self) -> MutexGuard<'_, ()> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the communicator, once; gives NCCL a few seconds for it and then leaves it alone.
    fn abort(&self) {
        // Calls are short. One that is stuck inside the library against its promise is what `ncclCommAbort` is for.
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut entered = self.calls.try_lock().ok();
        while entered.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            entered = self.calls.try_lock().ok();
        }
        let comm = self.comm.swap(ptr::null_mut(), Ordering::AcqRel);
        drop(entered);
        if comm.is_null() {
            return;
        }
        let (done, ended) = mpsc::channel();
        let (functions, comm) = (self.functions, comm as usize);
        let abort = move || {
            // SAFETY: taken out of the one place that had it, so that nobody uses it any more and it is ended once.
            unsafe { (functions.abort)(comm as Comm) };
            let _ = done.send(());
        };
        if std::thread::Builder::new().name("nccl-abort".into()).spawn(abort).is_ok() {
            let _ = ended.recv_timeout(Duration::from_secs(ABORT_SECONDS));
        }
    }
}
