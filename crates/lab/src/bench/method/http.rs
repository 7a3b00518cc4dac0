//! The file from one web server to everybody.

use std::time::SystemTime;

use anyhow::Result;

use super::{Method, done_when_ended, first_line};
use crate::bench::fabric::{Place, SERVER};
use crate::bench::stage::{FILE, Line, Stage};
use crate::line;

pub(super) struct Http;

impl Method for Http {
    fn name(&self) -> String {
        "http".to_owned()
    }

    fn needs(&self) -> &'static [&'static str] {
        &["nginx", "curl"]
    }

    fn version(&self) -> String {
        let curl: Vec<String> = first_line("curl", &["--version"]).split(' ').take(2).map(str::to_owned).collect();
        format!("{}, {}", first_line("nginx", &["-v"]), curl.join(" "))
    }

    fn serve(&self, stage: &mut Stage<'_>) -> Result<()> {
        let home = stage.home(Place::Server);
        let root = home.join("root");
        std::fs::create_dir(&root)?;
        std::os::unix::fs::symlink(&stage.source, root.join(FILE))?;
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|kind| format!("{kind}_temp_path {}/{kind}; ", home.display()))
            .collect();
        let text = format!(
            "daemon off; user root; worker_processes 2; pid {home}/pid; error_log {home}/err;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; {temporary}\n\
             server {{ listen 80 reuseport; root {root}; }} }}\n",
            home = home.display(),
            root = root.display()
        );
        let config = home.join("nginx.conf");
        std::fs::write(&config, text)?;
        stage.start(Place::Server, &line!["nginx", "-c", config.display()])?;
        stage.wait_for_port(80)
    }

    fn line(&self, stage: &Stage<'_>, node: usize) -> Line {
        line!["curl", "-sS", "-f", "-o", stage.destination(node).display(), format!("http://{SERVER}/{FILE}")]
    }

    fn done(&self, stage: &mut Stage<'_>, node: usize) -> Result<Option<SystemTime>> {
        done_when_ended(stage, node)
    }
}
