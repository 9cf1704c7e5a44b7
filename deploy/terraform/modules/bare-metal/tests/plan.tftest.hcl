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
