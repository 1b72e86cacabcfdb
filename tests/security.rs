//! SECURITY.md names a test for each threat: they are there, and no code is unsafe.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Our sources: all of them in the repository.
fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !matches!(&*name, "target" | "node_modules" | ".git") {
            sources(&path, into);
        } else if name.ends_with(".rs") {
            into.push(path);
        }
    }
}

fn texts() -> Vec<String> {
    let mut paths = Vec::new();
    sources(root(), &mut paths);
    assert!(paths.len() > 100);
    paths.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
}

#[test]
fn each_threat_has_a_test_that_is_there() {
    let mut there = HashSet::new();
    for text in texts() {
        for line in text.lines() {
            if let Some((_, rest)) = line.split_once("fn ") {
                there.insert(rest.split(['(', '<']).next().unwrap().to_owned());
            }
        }
    }
    let table = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let rows: Vec<_> =
        table.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| threat |")).collect();
    let rows: Vec<_> = rows.into_iter().filter(|line| !line.starts_with("| what happens |")).collect();
    assert!(rows.len() > 25, "{}", rows.len());
    for row in rows {
        let tests: Vec<_> = row.trim_end_matches(" |").rsplit(" | ").next().unwrap().split(", ").collect();
        for test in tests {
            let name = test.trim_matches('`');
            assert!(there.contains(name), "there is no test {name}: {row}");
        }
    }
}

#[test]
fn no_code_of_ours_may_be_unsafe() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(workspace.contains("unsafe_code = \"forbid\""));
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
    for member in members.trim_end_matches(']').split(", ").map(|member| member.trim_matches('"')) {
        let manifest = fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member} has lints of its own");
    }
    // And for those that read one crate alone, or build one outside of the workspace.
    let roots = ["src/lib.rs", "src/main.rs"];
    let packages =
        ["", "benches/gateway", "benches/peers", "examples/gateway", "examples/grpc", "faults", "fuzz"];
    for package in packages {
        let found = roots.iter().filter_map(|file| fs::read_to_string(root().join(package).join(file)).ok());
        let forbids: Vec<_> = found.map(|text| text.contains("\n#![forbid(unsafe_code)]\n")).collect();
        assert!(forbids.contains(&true) && !forbids.contains(&false), "{package:?}");
    }
    let allowance = ["allow(", "unsafe"].concat();
    assert!(texts().iter().all(|text| !text.contains(&allowance)));
}
