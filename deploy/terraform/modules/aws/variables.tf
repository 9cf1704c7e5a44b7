variable "name" {
  description = "Name of the cluster: part of every resource's name."
  type        = string
  default     = "foggara"
  nullable    = false

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,19}$", var.name))
    error_message = "name: 1 to 20 lower-case letters, digits and dashes, a letter first."
  }
}

variable "region" {
  description = "Region of the provider, as in `eu-central-1`."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "region: as in `eu-central-1`."
  }
}

variable "coordinator_zones" {
  description = "Three availability zones, one for each coordinator: one may be lost."
  type        = list(string)
  nullable    = false

  validation {
    condition     = length(var.coordinator_zones) == 3 && length(distinct(var.coordinator_zones)) == 3
    error_message = "coordinator_zones: three different zones."
  }
}

variable "worker_zone" {
  description = "The one availability zone of all workers: a fast fabric does not reach beyond it."
  type        = string
  nullable    = false
}

variable "cidr" {
  description = "Addresses of the cluster's own network, a /16 to /22."
  type        = string
  default     = "10.20.0.0/16"
  nullable    = false

  validation {
    condition     = can(cidrsubnet(var.cidr, 6, 63)) && try(tonumber(split("/", var.cidr)[1]), 0) >= 16 && try(tonumber(split("/", var.cidr)[1]), 32) <= 22
    error_message = "cidr: a network of IPv4, from /16 to /22."
  }
}

variable "client_cidrs" {
  description = "Who may reach the load balancer: networks that lead here (peering, transit gateway, VPN). None: nobody outside."
  type        = list(string)
  default     = []
  nullable    = false

  validation {
    condition     = alltrue([for cidr in var.client_cidrs : can(cidrhost(cidr, 0)) && cidr != "0.0.0.0/0"])
    error_message = "client_cidrs: networks of IPv4. Clients need no key, so 0.0.0.0/0 is refused: put what authenticates them in front."
  }
}

variable "image" {
  description = "Machine image of coordinators and workers: Linux with systemd, cloud-init and the AWS command line; for GPUs with NVIDIA's driver (and EFA's, with a fast fabric)."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^ami-[0-9a-f]{8,17}$", var.image))
    error_message = "image: as in `ami-0123456789abcdef0`."
  }
}

variable "coordinator_type" {
  description = "Instance type of coordinators."
  type        = string
  default     = "m7i.large"
  nullable    = false
}

variable "worker_type" {
  description = "Instance type of machines of workers, as in `p5.48xlarge`."
  type        = string
  nullable    = false
}

variable "worker_machines" {
  description = "How many machines of workers."
  type        = number
  nullable    = false

  validation {
    condition     = var.worker_machines >= 1 && var.worker_machines <= 60 && floor(var.worker_machines) == var.worker_machines
    error_message = "worker_machines: 1 to 60."
  }
}

variable "gpus" {
  description = "GPUs of one machine of workers, a worker for each; 0: one worker that computes on the CPU."
  type        = number
  default     = 8
  nullable    = false

  validation {
    condition     = var.gpus >= 0 && var.gpus <= 16 && floor(var.gpus) == var.gpus
    error_message = "gpus: 0 to 16."
  }
}

variable "fabric_cards" {
  description = "Network cards of the fast fabric (EFA) of one machine of workers, as its type offers: 32 on p5.48xlarge; 0: none."
  type        = number
  default     = 0
  nullable    = false

  validation {
    condition     = var.fabric_cards >= 0 && var.fabric_cards <= 32 && floor(var.fabric_cards) == var.fabric_cards
    error_message = "fabric_cards: 0 to 32."
  }
}

variable "capacity_reservation_id" {
  description = "Capacity reservation for the workers; none: whatever is free."
  type        = string
  default     = null
}

variable "binary_bucket" {
  description = "S3 bucket that holds the program."
  type        = string
  nullable    = false
}

variable "binary_key" {
  description = "Its key there."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[A-Za-z0-9._/-]+$", var.binary_key))
    error_message = "binary_key: letters, digits, dots, dashes, underscores and slashes."
  }
}

variable "binary_sha256" {
  description = "SHA-256 that it must have: a machine that fetches another does not start."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[0-9a-f]{64}$", var.binary_sha256))
    error_message = "binary_sha256: 64 hexadecimal digits, in lower case."
  }
}

variable "models_bucket" {
  description = "S3 bucket that is copied to each machine of workers at its first start; none: models come otherwise."
  type        = string
  default     = null
}

variable "token_secret_arn" {
  description = "Secret in Secrets Manager whose value is the cluster token. Made outside, so that Terraform never sees it."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^arn:aws[a-z-]*:secretsmanager:", var.token_secret_arn))
    error_message = "token_secret_arn: the ARN of a secret in Secrets Manager."
  }
}

variable "kms_key_arn" {
  description = "Key that encrypts the disks (and the secret, if it does that, too); none: the account's own for EBS."
  type        = string
  default     = null
}

variable "data_gib" {
  description = "Size of each coordinator's disk for its Raft log and tables of models, in GiB."
  type        = number
  default     = 20
  nullable    = false

  validation {
    condition     = var.data_gib >= 4
    error_message = "data_gib: at least 4."
  }
}

variable "worker_disk_gib" {
  description = "Size of the disk of a machine of workers, models included, in GiB."
  type        = number
  default     = 500
  nullable    = false

  validation {
    condition     = var.worker_disk_gib >= 16
    error_message = "worker_disk_gib: at least 16."
  }
}

variable "tags" {
  description = "Tags of every resource that takes them."
  type        = map(string)
  default     = {}
  nullable    = false
}
