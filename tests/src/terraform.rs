//! Terraform, run by the operator of [`Hosts`].

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use crate::hosts::Hosts;
use crate::{paths, process};

/// One root module, its variables and its state.
#[derive(Debug)]
pub struct Terraform<'a> {
    hosts: &'a Hosts,
    module: PathBuf,
    token: String,
}

impl<'a> Terraform<'a> {
    /// The module `deploy/terraform/examples/NAME`, which stays as it is: all that is written is in the hosts' folder.
    pub fn new(hosts: &'a Hosts, example: &str, token: &str) -> Self {
        let module = paths::root().join("deploy/terraform/examples").join(example);
        let terraform = Self { hosts, module, token: token.into() };
        terraform.succeeds(&["init", "-backend=false"]);
        terraform
    }

    /// Writes the variables that the next commands go by.
    pub fn set(&self, variables: &Value) {
        std::fs::write(self.variables(), variables.to_string()).expect("the folder can be written");
    }

    fn variables(&self) -> PathBuf {
        self.hosts.folder().join("variables.tfvars.json")
    }

    /// Where the state is.
    pub fn state(&self) -> PathBuf {
        self.hosts.folder().join("terraform.tfstate")
    }

    /// A command, as the operator would type it.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("terraform");
        command.args(words).arg("-no-color").current_dir(&self.module);
        if words[0] != "init" {
            command.arg(format!("-state={}", self.state().display()));
        }
        if matches!(words[0], "plan" | "apply" | "destroy") {
            command.arg("-input=false").arg(format!("-var-file={}", self.variables().display()));
        }
        if matches!(words[0], "apply" | "destroy") {
            command.arg("-auto-approve");
        }
        command
            .env("TF_DATA_DIR", self.hosts.folder().join("terraform-data"))
            .env("TF_VAR_cluster_token", &self.token)
            // Nothing is asked of anybody's servers.
            .env("CHECKPOINT_DISABLE", "1")
            .env("TF_CLI_CONFIG_FILE", "/dev/null");
        self.hosts.operator(&command)
    }

    /// Runs one to its end.
    pub fn run(&self, words: &[&str]) -> Output {
        self.command(words).stdin(std::process::Stdio::null()).output().expect("`ip` can be run")
    }

    /// Runs one that must succeed; gives what it said.
    pub fn succeeds(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "terraform {}: {}", words.join(" "), process::text(&output));
        process::text(&output)
    }

    /// An output that is text.
    pub fn output(&self, name: &str) -> String {
        let mut command = self.command(&["output"]);
        let output = command.args(["-raw", name]).output().expect("`ip` can be run");
        assert!(output.status.success(), "terraform output {name}: {}", process::text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Whether there is nothing to be done.
    pub fn plan_is_empty(&self) -> bool {
        let output = self.run(&["plan", "-detailed-exitcode"]);
        match output.status.code() {
            Some(0) => true,
            Some(2) => false,
            _ => panic!("terraform plan: {}", process::text(&output)),
        }
    }
}
