# A cluster on machines that are there already. Cost: none beyond the machines'.

terraform {
  required_version = ">= 1.9"
}

variable "hosts" {
  description = "See the module's variable of that name."
  type        = any
}

variable "binary" {
  description = "The program `foggara` on this machine."
  type        = string
}

variable "cluster_token" {
  description = "What processes and operators show each other: `export TF_VAR_cluster_token=$(openssl rand -hex 32)`."
  type        = string
  sensitive   = true
}

variable "tls" {
  description = "Certificates, as the module's variable of that name; none: plain text."
  type        = any
  sensitive   = true
  default     = null
}

variable "ssh_user" {
  description = "Who logs in: root, or somebody who may `sudo` without a password."
  type        = string
  default     = "root"
}

variable "ssh_private_key_file" {
  description = "The key to log in with; none: those of the SSH agent."
  type        = string
  default     = null
}

variable "service_manager" {
  description = "What keeps the processes running: `systemd`, or `foggara` where no systemd runs."
  type        = string
  default     = "systemd"
}

variable "allow_interruption" {
  description = "Whether another token, or a release that cannot work with the one that runs, may stop the whole cluster for a while."
  type        = bool
  default     = false
}

variable "purge" {
  description = "Whether a machine that is taken out loses its data, too."
  type        = bool
  default     = false
}

module "foggara" {
  source = "../../modules/bare-metal"

  hosts                = var.hosts
  binary               = var.binary
  cluster_token        = var.cluster_token
  tls                  = var.tls
  ssh_user             = var.ssh_user
  ssh_private_key_file = var.ssh_private_key_file
  service_manager      = var.service_manager
  allow_interruption   = var.allow_interruption
  purge                = var.purge
}

output "endpoint" {
  description = "For `FOGGARA_ENDPOINT`: every coordinator."
  value       = module.foggara.endpoint
}

output "http" {
  description = "Where coordinators answer HTTP."
  value       = module.foggara.http
}
