//! `foggara.files.v1`: models' files for other nodes.

use foggara_models::manifest::{Hash, Manifest, read_pieces};
use foggara_proto::files::{FetchStream, fetch_stream};
use foggara_proto::wire::files as wire;
use tonic::{Request, Response, Status};

use crate::front_door::FrontDoor;
use crate::library::Undescribed;

/// The service.
pub(super) struct Service {
    pub(super) door: FrontDoor,
}

#[tonic::async_trait]
impl wire::files_server::Files for Service {
    type FetchStream = FetchStream;

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let wire::FetchRequest { model, file, bytes } = request.into_inner();
        let model: Hash = model.parse().map_err(Status::invalid_argument)?;
        let state = self.door.cluster.state();
        let known =
            |manifest: &str| (Hash::of(manifest.as_bytes()) == model).then(|| Manifest::parse(manifest).ok());
        let found = state
            .deployments
            .iter()
            .find_map(|(name, deployment)| Some((name, deployment, known(&deployment.manifest)??)));
        let (name, deployment, manifest) =
            found.ok_or_else(|| Status::not_found(format!("model {model} is not deployed")))?;
        let part = manifest.parts().into_iter().find(|part| part.file == file);
        let part = part.ok_or_else(|| Status::not_found(format!("model {model} has no file `{file}`")))?;
        if bytes > part.bytes {
            let reason = format!("bytes: {bytes}, of `{file}` others may have {}", part.bytes);
            return Err(Status::invalid_argument(reason));
        }
        let place = self.door.library.place(name, deployment).and_then(Result::ok);
        let place = place.ok_or_else(|| Status::not_found("the model's tables are not here"))?;
        let path = manifest.root(&place).join(&part.file);
        Ok(Response::new(fetch_stream(read_pieces(path, bytes))))
    }

    async fn describe(
        &self,
        request: Request<wire::DescribeRequest>,
    ) -> Result<Response<wire::DescribeResponse>, Status> {
        match self.door.library.describe_here(&request.into_inner().path).await {
            Ok(found) => Ok(Response::new(wire::DescribeResponse {
                manifest: found.manifest.to_text(),
                path: found.path.to_string_lossy().into_owned(),
                layers: u32::try_from(found.layers).unwrap_or(u32::MAX),
                experts: u32::try_from(found.experts).unwrap_or(u32::MAX),
            })),
            Err(Undescribed::NotHere(reason)) => Err(Status::not_found(reason)),
            Err(Undescribed::Unusable(reason)) => Err(Status::invalid_argument(reason)),
        }
    }
}
