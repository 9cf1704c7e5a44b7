# What lies on which machine, and nothing else: no resource, no provider. Every module that makes clusters uses it.

locals {
  # Numbered in the order of their names. The set cannot change in a running cluster, so neither can the numbers.
  coordinators = {
    for index, name in sort([for name, host in var.hosts : name if host.coordinator]) :
    name => { id = index + 1, address = var.hosts[name].address }
  }
  peers     = [for name in sort(keys(local.coordinators)) : "${local.coordinators[name].id}=${local.coordinators[name].address}:${var.grpc_port}"]
  join      = [for name in sort(keys(local.coordinators)) : "${local.coordinators[name].address}:${var.grpc_port}"]
  folder    = "/etc/foggara"
  data_dir  = "/var/lib/foggara/coordinator"
  token     = "${local.folder}/cluster-token"
  unit_path = "/etc/systemd/system"
  scheme    = var.tls ? "https" : "http"
  tls = [for option in [["tls_certificate", "tls.crt"], ["tls_key", "tls.key"], ["tls_ca", "ca.crt"]] :
    [option[0], "${local.folder}/${option[1]}"] if var.tls
  ]

  # Options of each process, in the order in which they are written.
  coordinator_options = {
    for name, coordinator in local.coordinators : name => concat([
      ["id", coordinator.id],
      ["cluster_id", var.cluster_id],
      ["peers", local.peers],
      ["grpc", "${coordinator.address}:${var.grpc_port}"],
      ["http", "${coordinator.address}:${var.http_port}"],
      ["data_dir", local.data_dir],
      ["models", var.hosts[name].models],
      ["cluster_token_file", local.token],
    ], local.tls, [for key, value in var.coordinator_settings : [key, value] if value != null])
  }
  workers = {
    for name, host in var.hosts : name => [
      for index, worker in host.workers : {
        name = "worker-${index + 1}"
        port = coalesce(worker.port, var.first_worker_port + index)
        options = concat([
          ["join", local.join],
          ["listen", "${host.address}:${coalesce(worker.port, var.first_worker_port + index)}"],
          ["device", worker.device],
          ["models", host.models],
          ["cache_dir", "/var/cache/foggara"],
          ["cluster_token_file", local.token],
          ],
          local.tls,
          # Not a conditional: its two sides would be made one type, and the number a string.
          [for threads in [worker.threads] : ["threads", threads] if threads != null],
        [for key, value in var.worker_settings : [key, value] if value != null])
      }
    ]
  }

  # JSON's strings, numbers, booleans and lists of them are written as TOML's are.
  toml = { for name, host in var.hosts : name => merge(
    host.coordinator ? {
      "coordinator" = join("", [for option in local.coordinator_options[name] : "${option[0]} = ${jsonencode(option[1])}\n"])
    } : {},
    { for worker in local.workers[name] : worker.name => join("", [for option in worker.options : "${option[0]} = ${jsonencode(option[1])}\n"]) },
  ) }

  # The units that packages install, too.
  units = {
    for file in ["foggara-coordinator.service", "foggara-worker@.service"] :
    "${local.unit_path}/${file}" => file("${path.module}/../../../systemd/${file}")
  }

  processes = { for name, host in var.hosts : name => concat(
    host.coordinator ? [{ name = "coordinator", address = "${host.address}:${var.grpc_port}", unit = "foggara-coordinator" }] : [],
    [for worker in local.workers[name] : {
      name    = worker.name
      address = "${host.address}:${worker.port}"
      unit    = "foggara-worker@${trimprefix(worker.name, "worker-")}"
    }],
  ) }
}
