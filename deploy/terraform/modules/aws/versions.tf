terraform {
  required_version = ">= 1.9"

  required_providers {
    aws = {
      source = "hashicorp/aws"
      # The version whose published schema this module is checked against is in schema.json.
      version = ">= 6.25, < 7"
    }
  }
}
