//! Getting the parts of a model that every coordinator needs from nodes that have them.

use std::collections::BTreeMap;
use std::path::Path;

use foggara_models::manifest::{Hash, Manifest, Part, assemble, read_part};

use super::{Library, Place, node};
use crate::cluster::ClusterHandle;

impl Library {
    /// Gets what is missing of a model, and puts it in its place.
    pub(super) async fn fetch(&self, cluster: &ClusterHandle, manifest: &Manifest) -> Place {
        let place = self.cached(manifest);
        let unfinished = place.with_extension("part");
        let parts = manifest.parts();
        let missing = {
            let (folder, parts) = (unfinished.clone(), parts.clone());
            let look = move || parts.into_iter().filter(|part| !is_there(&folder, part)).collect::<Vec<_>>();
            tokio::task::spawn_blocking(look).await.map_err(|e| e.to_string())?
        };
        let mut missing: BTreeMap<String, Part> = missing.into_iter().map(|p| (p.file.clone(), p)).collect();
        let mut asked = Vec::new();
        for node in node::nodes(&cluster.state(), self.0.id) {
            for part in missing.clone().into_values() {
                match node.fetch(&self.0.asking, manifest.hash(), &part).await {
                    Ok(data) => {
                        write(&unfinished, &part, data).await?;
                        missing.remove(&part.file);
                    }
                    Err(status) => {
                        asked.push(format!("{node}: {}", status.message()));
                        // It may have the others, unless it cannot be reached or has none.
                        if status.code() != tonic::Code::DataLoss {
                            break;
                        }
                    }
                }
            }
            if missing.is_empty() {
                break;
            }
        }
        if let Some(file) = missing.keys().next() {
            let asked = if asked.is_empty() { "no other node is known".to_owned() } else { asked.join("; ") };
            return Err(format!("file `{file}` of the model is neither here nor elsewhere: {asked}"));
        }
        let manifest = manifest.clone();
        let finish = move || {
            assemble(&manifest, &unfinished).map_err(|e| e.to_string())?;
            std::fs::remove_dir_all(&place).ok();
            std::fs::rename(&unfinished, &place).map_err(|e| format!("{}: {e}", place.display()))?;
            tracing::info!(model = %manifest.hash(), path = %place.display(), "the model's tables are here");
            Ok(manifest.open_path(&place))
        };
        tokio::task::spawn_blocking(finish).await.map_err(|e| e.to_string())?
    }
}

fn is_there(folder: &Path, part: &Part) -> bool {
    read_part(&folder.join(&part.file), 0, part.bytes).is_ok_and(|data| Hash::of(&data) == part.hash)
}

async fn write(folder: &Path, part: &Part, data: Vec<u8>) -> Result<(), String> {
    let path = folder.join(&part.file);
    let write = move || {
        let folder = path.parent().unwrap_or(&path);
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        std::fs::write(&path, data).map_err(|e| format!("{}: {e}", path.display()))
    };
    tokio::task::spawn_blocking(write).await.map_err(|e| e.to_string())?
}
