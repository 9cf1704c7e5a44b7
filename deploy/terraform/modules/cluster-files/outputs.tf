output "files" {
  description = "Configuration of each host: content by path."
  value       = { for name, toml in local.toml : name => { for process, text in toml : "${local.folder}/${process}.toml" => text } }
}

output "units" {
  description = "systemd's units: content by path."
  value       = local.units
}

output "processes" {
  description = "Processes of each host: name, address, and systemd's unit for it."
  value       = local.processes
}

output "coordinators" {
  description = "Number and address of each coordinator, by host."
  value       = local.coordinators
}

output "peers" {
  description = "All coordinators, as `foggara coordinator --peers` takes them."
  value       = local.peers
}

output "grpc" {
  description = "Where coordinators answer gRPC: for `--endpoint`."
  value       = [for address in local.join : "${local.scheme}://${address}"]
}

output "http" {
  description = "Where coordinators answer HTTP: for clients of the OpenAI API, and Prometheus."
  value       = [for name in sort(keys(local.coordinators)) : "${local.scheme}://${local.coordinators[name].address}:${var.http_port}"]
}

output "cloud_init" {
  description = "cloud-init for each host that sets itself up; empty without `boot`."
  value = { for name, host in var.hosts : name => templatefile("${path.module}/templates/cloud-init.yaml.tftpl", {
    files = merge(
      { for process, text in local.toml[name] : "${local.folder}/${process}.toml" => text },
      local.units,
    )
    units        = [for process in local.processes[name] : process.unit]
    data_dir     = local.data_dir
    token        = local.token
    data_device  = lookup(var.boot.data_devices, name, "")
    fetch_token  = var.boot.fetch_token
    fetch_binary = var.boot.fetch_binary
    fetch_models = length(host.workers) > 0 ? var.boot.fetch_models : ""
  }) if var.boot != null }
}

output "workers" {
  description = "How many workers there are."
  value       = sum([for host in values(var.hosts) : length(host.workers)])
}
