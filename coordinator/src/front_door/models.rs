//! The deployments' tokenizers and chat templates, loaded as deployments come and go; their adapters have the same.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use foggara_models::Checkpoint;
use tokio::sync::watch;

use super::api_error::{ApiError, Kind};
use crate::cluster::ClusterHandle;
use crate::cluster::state::Deployment;
use crate::cluster::state::adapters::Adapter;
use crate::library::{Library, Place};
use crate::router::GenerateError;
use crate::text::{ChatTemplate, Tokenizer};

/// Seconds after which to ask again for a model whose tables are being looked for.
pub(super) const NOT_YET_RETRY: u64 = 2;

/// What a front door knows of a deployment, or of an adapter of one.
#[derive(Clone)]
pub struct ServedModel {
    /// The name it is served under: what clients call it.
    pub name: String,
    /// Whose groups compute it.
    pub deployment: String,
    /// With this adapter; `None`: the model alone.
    pub adapter: Option<Adapter>,
    /// Unix seconds at which it was made.
    pub created: i64,
    /// Tokens of prompt and answer together.
    pub context: usize,
    /// Token ids are below this.
    pub vocab: usize,
    /// Absent for a checkpoint that is served on token ids alone.
    pub tokenizer: Option<Tokenizer>,
    /// Absent for a checkpoint without one.
    pub template: Option<Arc<ChatTemplate>>,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
}

impl ServedModel {
    /// Reads tables and vocabulary of a deployment's checkpoint; never its weights.
    fn load(name: &str, deployment: &Deployment, path: &Path) -> Result<Self, String> {
        let model = Checkpoint::open(path).map_err(|e| e.to_string())?;
        let special = model.special();
        let source = model.tokenizer().map_err(|e| e.to_string())?;
        let tokenizer = source.map(|source| Tokenizer::from_source(&source, special)).transpose();
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (bos, eos) = (text(&special.bos_text), text(&special.eos_text));
        let template =
            model.chat_template().map(|template| ChatTemplate::compile(template, &bos, &eos)).transpose();
        Ok(Self {
            name: name.to_owned(),
            deployment: name.to_owned(),
            adapter: None,
            created: deployment.created,
            context: model.spec().context,
            vocab: model.spec().vocab,
            tokenizer: tokenizer.map_err(|e| e.to_string())?,
            template: template.map_err(|e| e.to_string())?.map(Arc::new),
            eos: special.eos.clone(),
        })
    }

    /// The same model with an adapter.
    fn adapted(&self, name: &str, adapter: &Adapter) -> Self {
        let (name, created) = (name.to_owned(), adapter.created);
        Self { name, created, adapter: Some(adapter.clone()), ..self.clone() }
    }
}

/// What has become of opening a model.
#[derive(Clone)]
enum Opened {
    Yes(Arc<ServedModel>),
    /// It never will be.
    No(String),
    /// Nobody has looked for its tables yet: that takes a moment.
    Looking,
    /// Its tables are not here yet; they are looked for again and again.
    NotYet(String),
}

type Loaded = BTreeMap<String, (Deployment, Opened)>;

/// What may be asked for.
#[derive(Default)]
struct Known {
    loaded: Loaded,
    /// Names are no deployment's.
    adapters: BTreeMap<String, Adapter>,
}

impl Known {
    /// The entry of the model called `name`, or of the only one there is, and the adapter that is called so.
    fn entry(&self, name: &str) -> Option<(&Opened, Option<&Adapter>)> {
        let opened = |name: &str| self.loaded.get(name).map(|(_, opened)| opened);
        match name {
            "" if self.loaded.len() == 1 => self.loaded.values().next().map(|(_, opened)| (opened, None)),
            name => match self.adapters.get(name) {
                Some(adapter) => Some((opened(&adapter.deployment)?, Some(adapter))),
                None => Some((opened(name)?, None)),
            },
        }
    }
}

/// The models of all deployments.
#[derive(Clone, Default)]
pub struct ServedModels(Arc<Shared>);

#[derive(Default)]
struct Shared {
    known: RwLock<Known>,
    /// Counts up when a model has been opened.
    opened: watch::Sender<u64>,
    /// Whether this coordinator has just started and may not have been told yet of every deployment.
    starting: AtomicBool,
}

impl ServedModels {
    /// Of a coordinator that starts: until it has caught up with the others, no model is unknown to it for good.
    pub fn of_starting() -> Self {
        let models = Self::default();
        models.0.starting.store(true, Ordering::Release);
        models
    }

    /// Follows the deployments for as long as the process lives.
    pub async fn follow(self, cluster: ClusterHandle, library: Library) {
        let (mut watch, mut places) = (cluster.watch(), library.changes());
        let catching_up = async { while cluster.read_index().await.is_err() {} };
        tokio::pin!(catching_up);
        let mut caught_up = false;
        loop {
            places.borrow_and_update();
            let state = watch.borrow_and_update().clone();
            self.write(|known| {
                known.loaded.retain(|name, (deployment, _)| state.deployments.get(name) == Some(deployment));
                known.adapters.clone_from(&state.adapters);
            });
            for (name, deployment) in &state.deployments {
                let known = self.read(|known| known.loaded.get(name).map(|(_, opened)| opened.clone()));
                let place = library.place(name, deployment);
                match (known, place) {
                    (Some(_), None) | (Some(Opened::Yes(_) | Opened::No(_)), _) => {}
                    (None, None) => {
                        let entry = (deployment.clone(), Opened::Looking);
                        self.write(|known| known.loaded.insert(name.clone(), entry));
                    }
                    (Some(Opened::NotYet(known)), Some(Err(reason))) if known == reason => {}
                    (_, Some(place)) => self.open(name.clone(), deployment.clone(), place).await,
                }
            }
            if caught_up {
                self.0.starting.store(false, Ordering::Release);
            }
            let changed = tokio::select! {
                changed = watch.changed() => changed,
                changed = places.changed() => changed,
                () = &mut catching_up, if !caught_up => {
                    caught_up = true;
                    Ok(())
                }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    async fn open(&self, name: String, deployment: Deployment, place: Place) {
        let load = move || {
            let opened = match place {
                Err(reason) => Opened::NotYet(reason),
                Ok(path) => match ServedModel::load(&name, &deployment, &path) {
                    Ok(model) => Opened::Yes(Arc::new(model)),
                    Err(reason) => Opened::No(reason),
                },
            };
            (name, (deployment, opened))
        };
        let Ok((name, entry)) = tokio::task::spawn_blocking(load).await else { return };
        if let Opened::No(reason) = &entry.1 {
            tracing::error!(deployment = name, reason, "the model cannot be served here");
        }
        self.write(|known| known.loaded.insert(name, entry));
    }

    /// Whether there may be more of them than are known here.
    pub(super) fn are_starting(&self) -> bool {
        self.0.starting.load(Ordering::Acquire)
    }

    /// Tells when another model has been opened.
    pub(super) fn opened(&self) -> watch::Receiver<u64> {
        self.0.opened.subscribe()
    }

    fn read<T>(&self, f: impl FnOnce(&Known) -> T) -> T {
        f(&self.0.known.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    fn write<T>(&self, f: impl FnOnce(&mut Known) -> T) -> T {
        let outcome = f(&mut self.0.known.write().unwrap_or_else(|poisoned| poisoned.into_inner()));
        self.0.opened.send_modify(|count| *count += 1);
        outcome
    }

    /// Every model that can be served here, then every adapter of these.
    pub(super) fn all(&self) -> Vec<Arc<ServedModel>> {
        let yes = |(_, opened): &(Deployment, Opened)| match opened {
            Opened::Yes(model) => Some(Arc::clone(model)),
            _ => None,
        };
        self.read(|known| {
            let adapted = |(name, adapter): (&String, &Adapter)| {
                let model = known.loaded.get(&adapter.deployment).and_then(yes)?;
                Some(Arc::new(model.adapted(name, adapter)))
            };
            let adapters = known.adapters.iter().filter_map(adapted);
            known.loaded.values().filter_map(yes).chain(adapters).collect()
        })
    }

    /// The model or adapter called `name`; with an empty name the only model there is.
    pub(super) fn get(&self, name: &str) -> Result<Arc<ServedModel>, ApiError> {
        // Before the table: it may be complete by the time that is looked at, but then a wrong "not yet" does no harm.
        let starting = self.0.starting.load(Ordering::Acquire);
        let not_yet = |reason: &str| ApiError {
            retry_after: Some(NOT_YET_RETRY),
            ..ApiError::new(Kind::Unavailable, format!("model `{name}` is not here yet: {reason}"))
        };
        self.read(|known| match known.entry(name) {
            Some((Opened::Yes(model), None)) => Ok(Arc::clone(model)),
            Some((Opened::Yes(model), Some(adapter))) => Ok(Arc::new(model.adapted(name, adapter))),
            Some((Opened::Looking, _)) => Err(not_yet("its files are being looked for")),
            Some((Opened::NotYet(reason), _)) => Err(not_yet(reason)),
            Some((Opened::No(reason), _)) => {
                Err(ApiError::new(Kind::Unavailable, format!("model `{name}` cannot be served: {reason}")))
            }
            None if name.is_empty() && !starting => {
                let names: Vec<&str> =
                    known.loaded.keys().chain(known.adapters.keys()).map(String::as_str).collect();
                Err(ApiError::invalid(
                    "model",
                    format!("must name one of the models served ({})", names.join(", ")),
                ))
            }
            None if starting => Err(ApiError {
                retry_after: Some(NOT_YET_RETRY),
                ..ApiError::new(
                    Kind::Unavailable,
                    format!("this coordinator has just started and does not know `{name}` yet"),
                )
            }),
            None => Err(GenerateError::UnknownModel(name.to_owned()).into()),
        })
    }

    /// Whether it will be known in a moment what has become of the model called `name` (or, with an empty name, of the only one).
    pub(super) fn is_looked_for(&self, name: &str) -> bool {
        self.read(|known| matches!(known.entry(name), Some((Opened::Looking, _))))
    }

    /// A model whose files nobody has looked for yet.
    #[cfg(test)]
    pub(super) fn insert_looked_for(&self, name: &str, deployment: Deployment) {
        self.write(|known| known.loaded.insert(name.to_owned(), (deployment, Opened::Looking)));
    }

    /// A model that is there without any file.
    #[cfg(test)]
    pub(super) fn insert(&self, deployment: Deployment, model: ServedModel) {
        let entry = (deployment, Opened::Yes(Arc::new(model.clone())));
        self.write(|known| known.loaded.insert(model.name, entry));
    }

    /// An adapter that is there without any file.
    #[cfg(test)]
    pub(super) fn insert_adapter(&self, name: &str, adapter: Adapter) {
        self.write(|known| known.adapters.insert(name.to_owned(), adapter));
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{FakeGenerator, Fixture, deployment, model};
    use super::*;

    #[test]
    fn nothing_is_unknown_for_good_to_a_coordinator_that_has_just_started() {
        let models = ServedModels::of_starting();
        for name in ["m", ""] {
            let error = models.get(name).err().expect("there is none");
            assert!(error.kind == Kind::Unavailable && error.retry_after.is_some(), "{}", error.message);
        }
        models.0.starting.store(false, Ordering::Release);
        assert!(models.get("m").err().is_some_and(|error| error.kind == Kind::NoSuchModel));
    }

    #[test]
    fn an_adapter_is_its_deployments_model_under_another_name() {
        let models = ServedModels::default();
        let adapter =
            Adapter { id: 5, deployment: "m".into(), path: "/a".into(), manifest: String::new(), created: 9 };
        models.insert_adapter("a", adapter.clone());
        assert!(models.get("a").err().is_some_and(|error| error.kind == Kind::NoSuchModel), "no model yet");
        models.insert_looked_for("m", deployment());
        assert!(models.is_looked_for("a"));
        models.insert(deployment(), model(None));
        let adapted = models.get("a").expect("it is there");
        assert_eq!((adapted.name.as_str(), adapted.deployment.as_str()), ("a", "m"));
        assert_eq!((adapted.adapter.as_ref(), adapted.created, adapted.context), (Some(&adapter), 9, 100));
        let alone = models.get("").expect("the only model");
        assert!(alone.name == "m" && alone.adapter.is_none());
        let names: Vec<String> = models.all().iter().map(|model| model.name.clone()).collect();
        assert_eq!(names, ["m", "a"]);
    }

    #[tokio::test]
    async fn a_request_waits_while_nobody_has_looked_for_its_model() {
        let fixture = Fixture::new(FakeGenerator::default());
        let models = &fixture.door.models;
        models.insert_looked_for("new", deployment());
        let error = models.get("new").err().expect("it is not here");
        assert!(error.kind == Kind::Unavailable && error.retry_after.is_some(), "{}", error.message);
        let asked = fixture.door.model("new");
        tokio::pin!(asked);
        assert!(futures::poll!(&mut asked).is_pending(), "it waits");
        models.insert(deployment(), ServedModel { name: "new".into(), ..model(None) });
        assert_eq!(asked.await.ok().map(|model| model.name.clone()).as_deref(), Some("new"));

        // What was looked for and is not here is told at once, with what keeps it.
        let entry = (deployment(), Opened::NotYet("no file".into()));
        models.write(|known| known.loaded.insert("new".into(), entry));
        let error = fixture.door.model("new").await.err().expect("it is not here");
        assert!(error.message.contains("no file"), "{}", error.message);
    }
}
