# What the cluster is, before any of it is AWS's: names, addresses, configuration.

locals {
  http_port         = 8080
  grpc_port         = 8081
  first_worker_port = 8082
  last_worker_port  = local.first_worker_port + max(var.gpus, 1) - 1

  coordinators = { for index, zone in var.coordinator_zones : "coordinator-${index + 1}" => {
    zone = zone
    cidr = cidrsubnet(var.cidr, 6, index)
    # Fixed: Raft members are known by their addresses. The first four of a network are AWS's.
    address = cidrhost(cidrsubnet(var.cidr, 6, index), 10)
  } }
  worker_cidr = cidrsubnet(var.cidr, 6, 3)
  workers = { for index in range(var.worker_machines) : "worker-${index + 1}" => {
    address = cidrhost(local.worker_cidr, index + 4)
  } }
  tags = merge(var.tags, { "foggara:cluster" = var.name })

  program = "/usr/local/bin/foggara"
}

module "files" {
  source = "../cluster-files"

  cluster_id        = var.name
  http_port         = local.http_port
  grpc_port         = local.grpc_port
  first_worker_port = local.first_worker_port
  hosts = merge(
    { for name, coordinator in local.coordinators : name => { address = coordinator.address, coordinator = true, workers = [] } },
    { for name, worker in local.workers : name => {
      address     = worker.address
      coordinator = false
      workers     = [for index in range(max(var.gpus, 1)) : { device = var.gpus == 0 ? "cpu" : "cuda:${index}" }]
    } },
  )
  boot = {
    fetch_binary = join("\n", [
      "aws s3 cp --only-show-errors 's3://${var.binary_bucket}/${var.binary_key}' ${local.program}.new",
      "echo '${var.binary_sha256}  ${local.program}.new' | sha256sum --check --quiet",
      "mv ${local.program}.new ${local.program}",
    ])
    fetch_token  = "aws secretsmanager get-secret-value --region ${var.region} --secret-id '${var.token_secret_arn}' --query SecretString --output text"
    fetch_models = var.models_bucket == null ? "" : "aws s3 sync --only-show-errors 's3://${var.models_bucket}' /var/lib/foggara/models"
    # It is attached while the machine starts.
    data_devices = { for name, volume in aws_ebs_volume.data : name => join("", [
      "device=/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_${replace(volume.id, "-", "")}; ",
      "until [ -e $device ]; do sleep 1; done; echo $device",
    ]) }
  }
}
