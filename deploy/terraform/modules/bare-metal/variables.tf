variable "hosts" {
  description = "Machines of the cluster by name. `address` is where the others find it; one with `coordinator` runs a coordinator; each entry of `workers` is a worker, of which `device` is `auto`, `cpu`, `cuda` or `cuda:NUMBER`, `threads` is how many cores it computes with (default: all) and `port` where it listens (default: `first_worker_port` and those after it); `models` are the folders that hold models. SSH goes to `ssh_address` (default: `address`) at `ssh_port`; with `ssh_host_key` (a line of the machine's `/etc/ssh/ssh_host_*_key.pub`) to no other machine."
  type = map(object({
    address      = string
    ssh_address  = optional(string)
    ssh_port     = optional(number, 22)
    ssh_host_key = optional(string)
    coordinator  = optional(bool, false)
    workers = optional(list(object({
      device  = optional(string, "auto")
      threads = optional(number)
      port    = optional(number)
    })), [])
    models = optional(list(string), ["/var/lib/foggara/models"])
  }))
  nullable = false

  validation {
    condition     = alltrue([for host in values(var.hosts) : host.ssh_port >= 1 && host.ssh_port <= 65535])
    error_message = "hosts: `ssh_port` is 1 to 65535."
  }
  validation {
    condition     = alltrue([for host in values(var.hosts) : can(regex("^[0-9A-Za-z.-]+$", coalesce(host.ssh_address, host.address)))])
    error_message = "hosts: `ssh_address` is an IPv4 address or a host name, without a port."
  }
  validation {
    condition     = alltrue([for host in values(var.hosts) : host.ssh_host_key == null ? true : can(regex("^[a-z0-9@.-]+ [A-Za-z0-9+/=]+", host.ssh_host_key))])
    error_message = "hosts: `ssh_host_key` is a public key, as in `ssh-ed25519 AAAA…`."
  }
}

variable "cluster_id" {
  description = "Name of the cluster; what is on the coordinators' disks belongs to it for good."
  type        = string
  default     = "foggara"
  nullable    = false
}

variable "http_port" {
  description = "Where coordinators listen for HTTP."
  type        = number
  default     = 8080
  nullable    = false
}

variable "grpc_port" {
  description = "Where coordinators listen for gRPC: clients, workers and each other."
  type        = number
  default     = 8081
  nullable    = false
}

variable "first_worker_port" {
  description = "Where the first worker of a machine listens; the second at the port after it, and so on."
  type        = number
  default     = 8082
  nullable    = false
}

variable "coordinator_settings" {
  description = "Options of coordinators, as `foggara coordinator --help` says them, with `_` for `-`."
  type = object({
    queue         = optional(number)
    router_policy = optional(string)
    lease_ms      = optional(number)
    speculate     = optional(number)
    vllm_metrics  = optional(bool)
    log           = optional(string)
    log_format    = optional(string)
  })
  default  = {}
  nullable = false
}

variable "worker_settings" {
  description = "Options of all workers, as `foggara worker --help` says them, with `_` for `-`."
  type = object({
    weights    = optional(string)
    log        = optional(string)
    log_format = optional(string)
  })
  default  = {}
  nullable = false
}

variable "binary" {
  description = "The program `foggara` on the machine that runs Terraform. Another content of this file is an upgrade."
  type        = string
  nullable    = false

  validation {
    condition     = fileexists(var.binary)
    error_message = "binary: there is no such file."
  }
}

variable "binary_sha256" {
  description = "SHA-256 that the file must have; none: whatever is there."
  type        = string
  default     = null

  validation {
    condition     = var.binary_sha256 == null ? true : can(regex("^[0-9a-f]{64}$", var.binary_sha256))
    error_message = "binary_sha256: 64 hexadecimal digits, in lower case."
  }
}

variable "cluster_token" {
  description = "What processes and operators show each other; `openssl rand -hex 32` makes one. Only its hash gets into the state."
  type        = string
  sensitive   = true
  nullable    = false

  validation {
    condition     = can(regex("^[!-~]{32,256}$", var.cluster_token))
    error_message = "cluster_token: 32 to 256 visible ASCII characters; `openssl rand -hex 32` makes one."
  }
}

variable "tls" {
  description = "Certificates in PEM, which make every port speak TLS: `ca` has the authorities that sign for the cluster; `certificates` has for each of `hosts` its `certificate` (and those between it and the authority), which is for the host's `address`, and the `key`. Only hashes get into the state. None: plain text."
  type = object({
    ca           = string
    certificates = map(object({ certificate = string, key = string }))
  })
  sensitive = true
  default   = null

  validation {
    condition     = var.tls == null ? true : strcontains(var.tls.ca, "-----BEGIN CERTIFICATE-----")
    error_message = "tls: `ca` has no certificate in PEM; `foggara certificates ca` makes one."
  }
  validation {
    condition     = var.tls == null ? true : length(setsubtract(keys(var.hosts), keys(var.tls.certificates))) == 0
    error_message = "tls: `certificates` has none for ${join(", ", setsubtract(keys(var.hosts), nonsensitive(var.tls == null ? [] : keys(var.tls.certificates))))}; `foggara certificates issue` makes one."
  }
  validation {
    condition     = var.tls == null ? true : length(setsubtract(keys(var.tls.certificates), keys(var.hosts))) == 0
    error_message = "tls: `certificates` has one for ${join(", ", setsubtract(nonsensitive(var.tls == null ? [] : keys(var.tls.certificates)), keys(var.hosts)))}, which is none of `hosts`."
  }
  validation {
    condition = var.tls == null ? true : alltrue([
      for pair in values(var.tls.certificates) : strcontains(pair.certificate, "-----BEGIN CERTIFICATE-----") && strcontains(pair.key, "PRIVATE KEY-----")
    ])
    error_message = "tls: each of `certificates` has a `certificate` and a private `key`, both in PEM."
  }
}

variable "service_manager" {
  description = "What keeps the processes running: `systemd`, or `foggara` (`foggara supervise`), where no systemd runs."
  type        = string
  default     = "systemd"
  nullable    = false

  validation {
    condition     = contains(["systemd", "foggara"], var.service_manager)
    error_message = "service_manager: `systemd` or `foggara`."
  }
}

variable "ssh_user" {
  description = "Who logs in: root, or somebody who may `sudo` without a password."
  type        = string
  default     = "root"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z_][a-z0-9_-]*$", var.ssh_user))
    error_message = "ssh_user: the name of a user."
  }
}

variable "ssh_private_key_file" {
  description = "The key to log in with; none: those of the SSH agent."
  type        = string
  default     = null

  validation {
    condition     = var.ssh_private_key_file == null ? true : fileexists(var.ssh_private_key_file)
    error_message = "ssh_private_key_file: there is no such file."
  }
}

variable "settle_seconds" {
  description = "How long one step of a roll may take until the cluster is whole again: loading a model above all."
  type        = number
  default     = 600
  nullable    = false

  validation {
    condition     = var.settle_seconds >= 10 && floor(var.settle_seconds) == var.settle_seconds
    error_message = "settle_seconds: a whole number from 10."
  }
}

variable "allow_interruption" {
  description = "Whether a change that no running cluster can make step by step (another token, a release that cannot work with the one that runs) may stop all of it."
  type        = bool
  default     = false
  nullable    = false
}

variable "purge" {
  description = "Whether a machine that is taken out loses its data, too: Raft log, hashes, logs. Must be applied before the machine is taken out."
  type        = bool
  default     = false
  nullable    = false
}
