# What is decided before anything is touched. That it works is tested on hosts, in tests/tests/cluster/terraform.rs.

variables {
  hosts = {
    a = { address = "10.0.0.1", coordinator = true, workers = [{}] }
    b = { address = "10.0.0.2", ssh_address = "b.example", ssh_port = 2222, workers = [{}, {}] }
  }
  binary        = "versions.tf"
  cluster_token = "0123456789abcdef0123456789abcdef"
}

run "plan" {
  command = plan

  assert {
    condition     = output.endpoint == "http://10.0.0.1:8081" && join(" ", output.http) == "http://10.0.0.1:8080"
    error_message = "${output.endpoint} ${join(" ", output.http)}"
  }
  assert {
    condition     = output.binary_sha256 == filesha256("versions.tf")
    error_message = "The program is known by its content."
  }
  assert {
    condition     = terraform_data.host["b"].input.address == "b.example" && terraform_data.host["b"].input.port == 2222
    error_message = "SSH goes where it is told to go."
  }
  assert {
    condition     = !strcontains(jsonencode(local.bundles), base64encode(var.cluster_token)) && !strcontains(base64decode(split(" ", trimspace(reverse(split("\n", trimspace(local.bundles["a"])))[0]))[2]), var.cluster_token)
    error_message = "The token is in nothing that Terraform remembers."
  }
  assert {
    condition     = strcontains(base64decode(split(" ", trimspace(reverse(split("\n", trimspace(local.bundles["b"])))[0]))[2]), "processes='worker-2=10.0.0.2:8083 worker-1=10.0.0.2:8082'")
    error_message = "Each machine knows its processes."
  }
}

run "plain_text" {
  command = plan

  assert {
    condition     = nonsensitive(local.certificates["a"]) == "# certificates\n" && strcontains(base64decode(split(" ", trimspace(reverse(split("\n", trimspace(local.bundles["a"])))[0]))[2]), "tls=no")
    error_message = "Without certificates nothing speaks TLS."
  }
}

run "certificates" {
  command = plan
  variables {
    tls = {
      ca = "-----BEGIN CERTIFICATE-----"
      certificates = {
        a = { certificate = "-----BEGIN CERTIFICATE----- a", key = "-----BEGIN PRIVATE KEY----- a" }
        b = { certificate = "-----BEGIN CERTIFICATE----- b", key = "-----BEGIN PRIVATE KEY----- b" }
      }
    }
  }

  assert {
    condition     = output.endpoint == "https://10.0.0.1:8081"
    error_message = output.endpoint
  }
  assert {
    condition     = strcontains(nonsensitive(local.certificates["b"]), "600 /etc/foggara/tls.key ${base64encode("-----BEGIN PRIVATE KEY----- b")}")
    error_message = "Each host has its own key, which nobody else reads."
  }
  assert {
    condition     = !strcontains(jsonencode(local.bundles), base64encode("-----BEGIN PRIVATE KEY----- b")) && !issensitive(local.bundles)
    error_message = "Keys are in nothing that Terraform remembers."
  }
}

run "a_host_without_a_certificate" {
  command = plan
  variables {
    tls = {
      ca           = "-----BEGIN CERTIFICATE-----"
      certificates = { a = { certificate = "-----BEGIN CERTIFICATE-----", key = "-----BEGIN PRIVATE KEY-----" } }
    }
  }
  expect_failures = [var.tls]
}

run "a_certificate_that_is_none" {
  command = plan
  variables {
    tls = {
      ca = "-----BEGIN CERTIFICATE-----"
      certificates = {
        a = { certificate = "a.crt", key = "a.key" }
        b = { certificate = "b.crt", key = "b.key" }
      }
    }
  }
  expect_failures = [var.tls]
}

run "a_certificate_for_nobody" {
  command = plan
  variables {
    tls = {
      ca = "-----BEGIN CERTIFICATE-----"
      certificates = { for name in ["a", "b", "c"] : name => {
        certificate = "-----BEGIN CERTIFICATE-----", key = "-----BEGIN PRIVATE KEY-----"
      } }
    }
  }
  expect_failures = [var.tls]
}

run "a_short_token" {
  command = plan
  variables {
    cluster_token = "secret"
  }
  expect_failures = [var.cluster_token]
}

run "no_program" {
  command = plan
  variables {
    binary = "nowhere"
  }
  expect_failures = [var.binary]
}

run "another_program_than_was_said" {
  command = plan
  variables {
    binary_sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
  }
  expect_failures = [terraform_data.program]
}

run "no_service_manager" {
  command = plan
  variables {
    service_manager = "runit"
  }
  expect_failures = [var.service_manager]
}
