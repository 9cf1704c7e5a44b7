//! `foggara.files.v1`: models' files for coordinators.

use std::path::PathBuf;

use foggara_models::manifest::{Hash, read_pieces};
use foggara_proto::files::{FetchStream, fetch_stream};
use foggara_proto::wire::files as wire;
use tonic::{Request, Response, Status};

use crate::models::Models;

/// The service.
pub(crate) struct FilesService {
    /// What is here.
    pub(crate) models: Models,
}

/// Runs what reads files, beside the messages.
async fn reading<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Status> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Status::internal(e.to_string()))
}

#[tonic::async_trait]
impl wire::files_server::Files for FilesService {
    type FetchStream = FetchStream;

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let wire::FetchRequest { model, file, bytes } = request.into_inner();
        let model: Hash = model.parse().map_err(Status::invalid_argument)?;
        let models = self.models.clone();
        let path = reading(move || models.part(model, &file, bytes)).await?.map_err(Status::not_found)?;
        Ok(Response::new(fetch_stream(read_pieces(path, bytes))))
    }

    async fn describe(
        &self,
        request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        let (models, path) = (self.models.clone(), PathBuf::from(request.into_inner().path));
        let described = {
            let path = path.clone();
            reading(move || models.describe(&path)).await?
        };
        match described.map_err(|e| Status::invalid_argument(e.to_string()))? {
            Some(found) => Ok(Response::new(wire::DescribeResponse {
                manifest: found.manifest.to_text(),
                path: found.path.to_string_lossy().into_owned(),
                layers: u32::try_from(found.layers).unwrap_or(u32::MAX),
                experts: u32::try_from(found.experts).unwrap_or(u32::MAX),
            })),
            None => Err(Status::not_found(format!("`{}` is not here", path.display()))),
        }
    }
}
