output "endpoint" {
  description = "For `FOGGARA_ENDPOINT`, and `--endpoint`: every coordinator."
  value       = join(",", module.files.grpc)
  depends_on  = [terraform_data.roll]
}

output "http" {
  description = "Where coordinators answer HTTP. Clients should know all of them: while one is restarted, the others serve."
  value       = module.files.http
  depends_on  = [terraform_data.roll]
}

output "coordinators" {
  description = "Number and address of each coordinator, by host."
  value       = module.files.coordinators
}

output "processes" {
  description = "Processes of each host: name, address, and systemd's unit for it."
  value       = module.files.processes
}

output "binary_sha256" {
  description = "SHA-256 of the program."
  value       = local.binary_sha
}
