# Three coordinators and two machines of eight H100s each, with the fast fabric.
#
# Cost: dominated by the GPU machines, which are billed from their start to their end whether they serve or not: a p5.48xlarge is in the
# order of 55 USD an hour on demand (2026; much less under a reservation), so two are about 80,000 USD a month. The rest
# (three m7i.large, disks, endpoints, the load balancer) is about 350 USD a month. Look the prices up before you apply.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 6.25, < 7"
    }
  }
}

provider "aws" {
  region = var.region
}

variable "region" {
  description = "Where."
  type        = string
  default     = "us-east-1"
}

variable "image" {
  description = "A Deep Learning image with NVIDIA's and EFA's drivers and the AWS command line."
  type        = string
}

variable "binary" {
  description = "Where the program is in S3, and its SHA-256."
  type        = object({ bucket = string, key = string, sha256 = string })
}

variable "token_secret_arn" {
  description = "aws secretsmanager create-secret --name foggara-token --secret-string \"$(openssl rand -hex 32)\""
  type        = string
}

module "foggara" {
  source = "../../modules/aws"

  region            = var.region
  coordinator_zones = ["${var.region}a", "${var.region}b", "${var.region}c"]
  worker_zone       = "${var.region}a"
  image             = var.image
  worker_type       = "p5.48xlarge"
  worker_machines   = 2
  gpus              = 8
  fabric_cards      = 32
  binary_bucket     = var.binary.bucket
  binary_key        = var.binary.key
  binary_sha256     = var.binary.sha256
  token_secret_arn  = var.token_secret_arn
}

output "http" {
  description = "Where clients of the OpenAI API go."
  value       = module.foggara.http
}
