//! What a file, a variable and an option come to. The environment of the tests themselves is not touched: variables that
//! are nobody else's stand for it.

use super::*;

fn all() -> Command {
    crate::command_line()
}

/// Reads `text` as a file of that kind.
fn read_text(kind: Kind, text: &str) -> Result<ConfigFile, String> {
    let name = format!("foggara-config-{}-{:?}", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).expect("written");
    let outcome = ConfigFile::read(&path, &settings(&kind.command(&all())));
    std::fs::remove_file(&path).ok();
    outcome.map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
}

const COORDINATOR: &str = "id = 1\npeers = [\"1=a:1\", \"2=b:2\"]\ndata_dir = \"/d\"\n";

/// What `words` and a file with `text` come to: setting by setting.
fn together(text: &str, words: &[&str]) -> Vec<(String, String, String)> {
    let command = Kind::Coordinator.command(&all());
    let settings = settings(&command);
    let file = read_text(Kind::Coordinator, text).expect("a file that is right");
    let words = ["coordinator"].iter().chain(words);
    let matches = file.apply(command).try_get_matches_from(words).expect("all that is required is there");
    let rows = effective(&settings, &file, &matches);
    rows.into_iter().map(|row| (row.key, row.value.unwrap_or_default(), row.source)).collect()
}

fn of(rows: &[(String, String, String)], key: &str) -> (String, String) {
    let row = rows.iter().find(|(found, _, _)| found == key).expect("a setting");
    (row.1.clone(), row.2.clone())
}

#[test]
fn a_file_gives_what_options_would() {
    let text = format!(
        "{COORDINATOR}lease_ms = 1_000\nqueue = 0x10\nvllm_metrics = true\nmodels = [\"/a b\", \"/c\"]\nlog_format = 'json'\n"
    );
    let rows = together(&text, &[]);
    for (key, value, source) in [
        ("id", "1", "file, line 1"),
        ("peers", r#"["1=a:1", "2=b:2"]"#, "file, line 2"),
        ("lease_ms", "1000", "file, line 4"),
        ("queue", "16", "file, line 5"),
        ("vllm_metrics", "true", "file, line 6"),
        ("models", r#"["/a b", "/c"]"#, "file, line 7"),
        ("log_format", "\"json\"", "file, line 8"),
        ("grpc", "\"127.0.0.1:8081\"", "default"),
        ("cache_dir", "(the data folder)", "default"),
    ] {
        assert_eq!(of(&rows, key), (value.into(), source.into()), "{key}");
    }
}

#[test]
fn a_list_may_be_the_options_text() {
    let rows = together("id = 1\npeers = \"1=a:1,2=b:2\"\ndata_dir = \"/d\"\n", &[]);
    assert_eq!(of(&rows, "peers").0, r#"["1=a:1", "2=b:2"]"#);
}

#[test]
fn an_option_goes_before_the_file() {
    let text = format!("{COORDINATOR}lease_ms = 1000\nvllm_metrics = true\nmodels = [\"/a\"]\n");
    let rows =
        together(&text, &["--lease-ms", "5", "--vllm-metrics=false", "--models", "/b", "--peers", "1=c:3"]);
    for (key, value) in
        [("lease_ms", "5"), ("vllm_metrics", "false"), ("models", "[\"/b\"]"), ("peers", "[\"1=c:3\"]")]
    {
        assert_eq!(of(&rows, key), (value.into(), "option".into()), "{key}");
    }
}

#[test]
fn mistakes_are_named_with_their_line() {
    for (text, says) in [
        ("id = 1\ndata-dir = \"/d\"\n", "FILE:2: there is no setting `data-dir`; did you mean `data_dir`?"),
        ("lease_sm = 1\n", "did you mean `lease_ms`?"),
        ("colour = 1\n", "there is no setting `colour`; there are id, peers,"),
        ("exit_with_parent = 1\n", "there is no setting"),
        ("config = \"x\"\n", "there is no setting"),
        ("\n\nid = \"1\"\n", "FILE:3: id: must be a whole number, without quotes, and is of type string"),
        ("id = 1.5\n", "is of type float"),
        ("id = -1\n", "FILE:1: id: `-1`: "),
        ("vllm_metrics = \"yes\"\n", "must be true or false, without quotes"),
        ("lease_ms = 70000\n", "lease_ms: `70000`: 70000 is not in 0..=60000"),
        ("grpc = \"here\"\n", "grpc: `here`: invalid socket address"),
        ("log_format = \"xml\"\n", "must be one of text, json"),
        ("router_policy = \"fair\"\n", "router_policy: `fair`: "),
        ("id = [1]\n", "takes one value, not an array"),
        ("peers = [1]\n", "must be a string, in quotes"),
        ("[raft]\nid = 1\n", "there is no setting `raft`"),
        ("id = 1\nid = 2\n", "FILE:2: duplicate key"),
        ("id = \n", "FILE:1: "),
    ] {
        let error = read_text(Kind::Coordinator, text).expect_err(text);
        assert!(error.starts_with("FILE") && error.contains(says), "{text}: {error}");
    }
    let error = read_text(Kind::Worker, "threads = 99999999999999999999999\n").expect_err("too many");
    assert!(error.contains("threads"), "{error}");
}

#[test]
fn a_file_with_a_token_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::temp_dir().join(format!("foggara-config-token-{}", std::process::id()));
    std::fs::write(&path, "cluster_token = \"very secret\"\n").expect("written");
    let read = |mode: u32| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        ConfigFile::read(&path, &settings(&Kind::Worker.command(&all())))
    };
    let error = read(0o644).expect_err("everybody reads it").to_string();
    assert!(error.contains("cluster_token") && error.contains("chmod"), "{error}");
    assert!(!error.contains("very secret"));
    assert!(read(0o600).is_ok());
    std::fs::remove_file(path).ok();
}

#[test]
fn secrets_are_not_shown() {
    let rows = together(COORDINATOR, &["--cluster-token", "very secret"]);
    assert_eq!(of(&rows, "cluster_token"), ("(hidden)".into(), "option".into()));
}

#[test]
fn the_file_is_found_although_what_is_required_stands_in_it() {
    let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let named = |list: &[&str]| {
        let named = named_file(&all(), &words(list))?;
        assert_eq!(named.path, PathBuf::from("/etc/worker.toml"));
        Some((named.reader, named.kind))
    };
    let file = "--config=/etc/worker.toml";
    let (coordinator, worker) = (Some(Kind::Coordinator), Some(Kind::Worker));
    for (list, expected) in [
        (&["foggara", "worker", "--config", "/etc/worker.toml"][..], Some(("worker", worker))),
        (&["foggara", "coordinator", file, "--id", "3"], Some(("coordinator", coordinator))),
        (&["foggara", "doctor", file], Some(("doctor", worker))),
        (&["foggara", "doctor", "--coordinator", file], Some(("doctor", coordinator))),
        (&["foggara", "doctor", "--worker"], None),
        (&["foggara", "coordinator"], None),
        (&["foggara", "status"], None),
        (&["foggara", "worker", "--nonsense"], None),
    ] {
        assert_eq!(named(list), expected, "{list:?}");
    }
}

#[test]
fn preflight_takes_what_the_file_of_a_process_says() {
    let folder = std::env::temp_dir().join(format!("foggara-preflight-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("can be made");
    let path = |name: &str| folder.join(name);
    std::fs::write(path("coordinator.toml"), format!("{COORDINATOR}queue = 7\n")).expect("written");
    std::fs::copy(path("coordinator.toml"), path("other.toml")).expect("written");
    let asked = |name: &str, more: &[&str]| {
        let words = ["foggara", "doctor", "--config"].map(OsString::from).into_iter();
        let words = words.chain([path(name).into_os_string()]).chain(more.iter().map(OsString::from));
        read(all(), &words.collect::<Vec<_>>()).map_err(|error| error.to_string())
    };
    let matches = asked("coordinator.toml", &["--data-dir", "/mine"]).expect("a file").expect("is taken");
    let (_, doctor) = matches.subcommand().expect("doctor");
    assert!(doctor.get_flag("coordinator") && !doctor.get_flag("worker"));
    assert_eq!(doctor.get_one::<u64>("id"), Some(&1));
    assert_eq!(doctor.get_many::<String>("peers").expect("peers").count(), 2);
    assert_eq!(
        doctor.get_one::<PathBuf>("data_dir"),
        Some(&"/mine".into()),
        "an option goes before the file"
    );
    let unnamed = asked("other.toml", &[]).expect("a file").expect_err("of no kind");
    assert!(unnamed.to_string().contains("say --coordinator or --worker"), "{unnamed}");
    let wrong = asked("other.toml", &["--worker"]).expect_err("not a worker's");
    assert!(wrong.contains("there is no setting `"), "{wrong}");
    std::fs::remove_dir_all(&folder).expect("it is there");
}

#[test]
fn whose_a_file_is_stands_in_its_name() {
    for (path, kind) in [
        ("/etc/foggara/coordinator.toml", Some(Kind::Coordinator)),
        ("worker-2.toml", Some(Kind::Worker)),
        ("/worker/settings.toml", None),
    ] {
        assert_eq!(Kind::of_file(Path::new(path)), kind, "{path}");
    }
}

#[test]
fn the_command_line_is_well_formed() {
    all().debug_assert();
}
