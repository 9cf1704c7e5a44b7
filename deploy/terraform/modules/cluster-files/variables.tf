variable "hosts" {
  description = "Machines of the cluster by name. `address` is where the others find it; one with `coordinator` runs a coordinator; each entry of `workers` is a worker, of which `device` is `auto`, `cpu`, `cuda` or `cuda:NUMBER`, `threads` is how many cores it computes with (default: all) and `port` where it listens (default: `first_worker_port` and those after it); `models` are the folders that hold models."
  type = map(object({
    address     = string
    coordinator = optional(bool, false)
    workers = optional(list(object({
      device  = optional(string, "auto")
      threads = optional(number)
      port    = optional(number)
    })), [])
    models = optional(list(string), ["/var/lib/foggara/models"])
  }))
  nullable = false

  validation {
    condition     = alltrue([for name in keys(var.hosts) : can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", name))])
    error_message = "hosts: names are 1 to 63 lower-case letters, digits and dashes, as in `gpu-1`."
  }
  validation {
    condition     = alltrue([for host in values(var.hosts) : can(regex("^[0-9A-Za-z.-]+$", host.address))])
    error_message = "hosts: `address` is an IPv4 address or a host name, without a port."
  }
  validation {
    condition     = contains([1, 3, 5], length([for host in values(var.hosts) : host if host.coordinator]))
    error_message = "hosts: 1, 3 or 5 of them must have `coordinator = true`."
  }
  validation {
    condition     = alltrue([for host in values(var.hosts) : host.coordinator || length(host.workers) > 0])
    error_message = "hosts: each must have `coordinator = true` or at least one entry in `workers`; leave out one that has neither."
  }
  validation {
    condition     = length(distinct([for host in values(var.hosts) : host.address])) == length(var.hosts)
    error_message = "hosts: two have the same `address`."
  }
  validation {
    condition = alltrue(flatten([
      for host in values(var.hosts) : [for worker in host.workers : can(regex("^(auto|cpu|cuda(:[0-9]+)?)$", worker.device))]
    ]))
    error_message = "hosts: a worker's `device` is `auto`, `cpu`, `cuda` or `cuda:NUMBER`."
  }
  validation {
    condition = alltrue(flatten([
      for host in values(var.hosts) : [
        for worker in host.workers : worker.threads == null ? true : worker.threads >= 1 && floor(worker.threads) == worker.threads
      ]
    ]))
    error_message = "hosts: a worker's `threads` is a whole number from 1."
  }
  validation {
    condition     = alltrue(flatten([for host in values(var.hosts) : [for folder in host.models : startswith(folder, "/")]]))
    error_message = "hosts: folders of `models` are absolute paths."
  }
}

variable "cluster_id" {
  description = "Name of the cluster; what is on the coordinators' disks belongs to it for good."
  type        = string
  default     = "foggara"
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,64}$", var.cluster_id))
    error_message = "cluster_id: 1 to 64 letters, digits, dashes and underscores."
  }
}

variable "http_port" {
  description = "Where coordinators listen for HTTP."
  type        = number
  default     = 8080
  nullable    = false

  validation {
    condition     = var.http_port >= 1 && var.http_port <= 65535
    error_message = "http_port: 1 to 65535."
  }
}

variable "grpc_port" {
  description = "Where coordinators listen for gRPC: clients, workers and each other."
  type        = number
  default     = 8081
  nullable    = false

  validation {
    condition     = var.grpc_port >= 1 && var.grpc_port <= 65535 && var.grpc_port != var.http_port
    error_message = "grpc_port: 1 to 65535, and not `http_port`."
  }
}

variable "first_worker_port" {
  description = "Where the first worker of a machine listens; the second at the port after it, and so on."
  type        = number
  default     = 8082
  nullable    = false

  validation {
    condition     = var.first_worker_port >= 1 && var.first_worker_port <= 65535
    error_message = "first_worker_port: 1 to 65535."
  }
}

variable "tls" {
  description = "Whether the processes speak TLS, with `tls.crt`, `tls.key` and `ca.crt` in `/etc/foggara`."
  type        = bool
  default     = false
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

  validation {
    condition     = var.coordinator_settings.router_policy == null ? true : contains(["prefix-aware", "least-loaded", "round-robin"], var.coordinator_settings.router_policy)
    error_message = "coordinator_settings: `router_policy` is `prefix-aware`, `least-loaded` or `round-robin`."
  }
  validation {
    condition     = var.coordinator_settings.lease_ms == null ? true : var.coordinator_settings.lease_ms >= 0 && var.coordinator_settings.lease_ms <= 60000
    error_message = "coordinator_settings: `lease_ms` is 0 to 60000."
  }
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

  validation {
    condition     = var.worker_settings.weights == null ? true : contains(["mapped", "copied"], var.worker_settings.weights)
    error_message = "worker_settings: `weights` is `mapped` or `copied`."
  }
}

variable "boot" {
  description = "For machines that set themselves up at their first start: shell commands for cloud-init. `fetch_binary` leaves the program at `/usr/local/bin/foggara`, `fetch_token` prints the cluster token, `fetch_models` brings models to a machine of workers, and `data_devices` has a command for each coordinator's host that prints the path of the disk for its data. Without `boot` there is no cloud-init."
  type = object({
    fetch_binary = string
    fetch_token  = string
    fetch_models = optional(string, "")
    data_devices = optional(map(string), {})
  })
  default = null
}
