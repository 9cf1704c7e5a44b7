variables {
  hosts = {
    b = { address = "10.0.0.2", coordinator = true }
    a = { address = "10.0.0.1", coordinator = true, workers = [{ device = "cuda:0" }, { threads = 4, port = 9000 }] }
    c = { address = "10.0.0.3", coordinator = true }
    d = { address = "10.0.0.4", workers = [{}], models = ["/models", "/more"] }
  }
}

run "configuration" {
  command = plan

  assert {
    condition     = join(" ", output.peers) == "1=10.0.0.1:8081 2=10.0.0.2:8081 3=10.0.0.3:8081"
    error_message = "Coordinators are numbered in the order of their names: ${join(" ", output.peers)}"
  }
  assert {
    condition     = join(" ", sort(keys(output.files["a"]))) == "/etc/foggara/coordinator.toml /etc/foggara/worker-1.toml /etc/foggara/worker-2.toml"
    error_message = "A file for each process."
  }
  assert {
    condition     = join(" ", keys(output.files["d"])) == "/etc/foggara/worker-1.toml"
    error_message = "No coordinator where none is asked for."
  }
  assert {
    condition     = output.files["b"]["/etc/foggara/coordinator.toml"] == <<-END
      id = 2
      cluster_id = "foggara"
      peers = ["1=10.0.0.1:8081","2=10.0.0.2:8081","3=10.0.0.3:8081"]
      grpc = "10.0.0.2:8081"
      http = "10.0.0.2:8080"
      data_dir = "/var/lib/foggara/coordinator"
      models = ["/var/lib/foggara/models"]
      cluster_token_file = "/etc/foggara/cluster-token"
    END
    error_message = output.files["b"]["/etc/foggara/coordinator.toml"]
  }
  assert {
    condition     = output.files["a"]["/etc/foggara/worker-2.toml"] == <<-END
      join = ["10.0.0.1:8081","10.0.0.2:8081","10.0.0.3:8081"]
      listen = "10.0.0.1:9000"
      device = "auto"
      models = ["/var/lib/foggara/models"]
      cache_dir = "/var/cache/foggara"
      cluster_token_file = "/etc/foggara/cluster-token"
      threads = 4
    END
    error_message = output.files["a"]["/etc/foggara/worker-2.toml"]
  }
  assert {
    condition     = output.workers == 3 && length(output.cloud_init) == 0
    error_message = "Three workers, and nothing for machines that are set up over SSH."
  }
  assert {
    condition     = output.processes["a"][1] == { name = "worker-1", address = "10.0.0.1:8082", unit = "foggara-worker@1" }
    error_message = jsonencode(output.processes["a"])
  }
}

run "tls" {
  command = plan
  variables {
    tls = true
  }

  assert {
    condition     = strcontains(output.files["a"]["/etc/foggara/coordinator.toml"], "tls_certificate = \"/etc/foggara/tls.crt\"\ntls_key = \"/etc/foggara/tls.key\"\ntls_ca = \"/etc/foggara/ca.crt\"\n")
    error_message = output.files["a"]["/etc/foggara/coordinator.toml"]
  }
  assert {
    condition     = strcontains(output.files["d"]["/etc/foggara/worker-1.toml"], "tls_key = \"/etc/foggara/tls.key\"\n")
    error_message = output.files["d"]["/etc/foggara/worker-1.toml"]
  }
  assert {
    condition     = output.grpc[0] == "https://10.0.0.1:8081" && output.http[0] == "https://10.0.0.1:8080"
    error_message = "${output.grpc[0]} ${output.http[0]}"
  }
}

run "settings" {
  command = plan
  variables {
    cluster_id           = "blue"
    coordinator_settings = { queue = 64, vllm_metrics = true, router_policy = "round-robin" }
    worker_settings      = { weights = "copied" }
  }

  assert {
    condition     = endswith(output.files["a"]["/etc/foggara/coordinator.toml"], "queue = 64\nrouter_policy = \"round-robin\"\nvllm_metrics = true\n")
    error_message = output.files["a"]["/etc/foggara/coordinator.toml"]
  }
  assert {
    condition     = endswith(output.files["d"]["/etc/foggara/worker-1.toml"], "weights = \"copied\"\n")
    error_message = output.files["d"]["/etc/foggara/worker-1.toml"]
  }
}

run "cloud_init" {
  command = plan
  variables {
    boot = {
      fetch_binary = "get program"
      fetch_token  = "get token"
      fetch_models = "get models"
      data_devices = { a = "find disk" }
    }
  }

  assert {
    condition     = alltrue([for text in values(output.cloud_init) : startswith(text, "#cloud-config\n") && can(yamldecode(text))])
    error_message = "cloud-init is YAML."
  }
  assert {
    condition = alltrue([
      for file in yamldecode(output.cloud_init["a"]).write_files :
      file.path != "/etc/foggara/coordinator.toml" || base64decode(file.content) == output.files["a"]["/etc/foggara/coordinator.toml"]
    ])
    error_message = "It has the same files."
  }
  assert {
    condition     = strcontains(base64decode(yamldecode(output.cloud_init["a"]).write_files[length(yamldecode(output.cloud_init["a"]).write_files) - 1].content), "systemctl enable --now foggara-coordinator foggara-worker@1 foggara-worker@2")
    error_message = "It starts its processes."
  }
  assert {
    condition     = strcontains(base64decode(yamldecode(output.cloud_init["a"]).write_files[length(yamldecode(output.cloud_init["a"]).write_files) - 1].content), "device=$(find disk)")
    error_message = "It mounts the disk of the coordinator's data."
  }
  assert {
    condition     = !strcontains(base64decode(yamldecode(output.cloud_init["b"]).write_files[length(yamldecode(output.cloud_init["b"]).write_files) - 1].content), "get models")
    error_message = "Models are for workers."
  }
}

run "two_coordinators" {
  command = plan
  variables {
    hosts = { a = { address = "a", coordinator = true }, b = { address = "b", coordinator = true } }
  }
  expect_failures = [var.hosts]
}

run "a_machine_without_a_process" {
  command = plan
  variables {
    hosts = { a = { address = "a", coordinator = true }, b = { address = "b" } }
  }
  expect_failures = [var.hosts]
}

run "one_address_twice" {
  command = plan
  variables {
    hosts = { a = { address = "a", coordinator = true }, b = { address = "a", workers = [{}] } }
  }
  expect_failures = [var.hosts]
}

run "a_device_that_is_none" {
  command = plan
  variables {
    hosts = { a = { address = "a", coordinator = true, workers = [{ device = "tpu" }] } }
  }
  expect_failures = [var.hosts]
}

run "one_port_twice" {
  command = plan
  variables {
    http_port = 8081
  }
  expect_failures = [var.grpc_port]
}

run "a_policy_that_is_none" {
  command = plan
  variables {
    coordinator_settings = { router_policy = "random" }
  }
  expect_failures = [var.coordinator_settings]
}
