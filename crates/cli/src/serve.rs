//! `rackswarm serve`: the controller.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use boot::dhcp::answer::Site;
use boot::dhcp::lines::Software;
use boot::interface::Interface;
use clap::{Args, ValueEnum};
use controller::Config;
use tracing_subscriber::EnvFilter;

use crate::output::{self, say};

/// Read when no other is named, if it is there.
const DEFAULT_FILE: &str = "/etc/rackswarm.toml";

const HELP: &str = "\
Examples:
  rackswarm serve --print-config > /etc/rackswarm.toml
  rackswarm serve --check
  rackswarm serve --print-dhcp-lines dnsmasq

It runs in the foreground until SIGTERM or Ctrl-C and logs to standard error; RUST_LOG=debug says more.";

/// How the controller runs, or what is printed instead.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    /// The configuration; without it /etc/rackswarm.toml where it exists, else the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the commented configuration with every key and its default, and end
    #[arg(long, conflicts_with_all = ["check", "print_dhcp_lines"])]
    print_config: bool,
    /// Check the configuration, and end
    #[arg(long, conflicts_with = "print_dhcp_lines")]
    check: bool,
    /// Print what a DHCP server of your own needs so that machines find this controller, and end
    #[arg(long, value_enum, value_name = "SERVER")]
    print_dhcp_lines: Option<DhcpServer>,
    /// How the log looks
    #[arg(long, value_enum, default_value_t = Log::Text)]
    log: Log,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Log {
    /// For people
    Text,
    /// One JSON object for each line
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DhcpServer {
    /// dnsmasq, also inside libvirt, OpenWrt and Pi-hole
    Dnsmasq,
    /// ISC dhcpd 4
    Isc,
    /// Kea DHCPv4
    Kea,
    /// A router with fields for options 66 and 67
    Router,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.print_config {
        say(controller::print_config().trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let (config, from) = configuration(arguments.config.as_deref())?;
    if arguments.check {
        say(format_args!("{from}; nothing is wrong with it"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(server) = arguments.print_dhcp_lines {
        say(dhcp_lines(&config, server)?.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    start_log(arguments.log);
    tracing::info!("{from}");
    // Before any thread is started, since it may become another account.
    controller::bind(config)?.run()?;
    Ok(ExitCode::SUCCESS)
}

/// The configuration and a sentence that says where it is from.
pub(crate) fn configuration(file: Option<&Path>) -> Result<(Config, String)> {
    let default = Path::new(DEFAULT_FILE);
    match file {
        Some(file) => Ok((Config::read(file)?, format!("configuration of {}", file.display()))),
        None if default.exists() => Ok((Config::read(default)?, format!("configuration of {DEFAULT_FILE}"))),
        None => Ok((Config::default(), format!("the defaults, since there is no {DEFAULT_FILE}"))),
    }
}

fn dhcp_lines(config: &Config, server: DhcpServer) -> Result<String> {
    let site = Site { server: advertised(config)?, http_port: config.server.listen.port(), tftp: config.tftp.clone() };
    let software = match server {
        DhcpServer::Dnsmasq => Software::Dnsmasq,
        DhcpServer::Isc => Software::Isc,
        DhcpServer::Kea => Software::Kea,
        DhcpServer::Router => Software::Router,
    };
    Ok(software.lines(&site))
}

/// The address under which machines reach this controller, by the same rule as the controller's own.
fn advertised(config: &Config) -> Result<Ipv4Addr> {
    if let Some(address) = config.server.advertise {
        return Ok(address);
    }
    if let std::net::IpAddr::V4(address) = config.server.listen.ip()
        && !address.is_unspecified()
    {
        return Ok(address);
    }
    let name = config.dhcp.interface.as_ref().ok_or_else(|| {
        anyhow!("it is not known under which address machines reach this controller: set server.advertise in the configuration")
    })?;
    Ok(Interface::find(name)?.server_address(config.dhcp.server_address)?)
}

fn start_log(log: Log) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match log {
        Log::Json => builder.json().init(),
        Log::Text => {
            builder.with_ansi(output::colours(&std::io::stderr())).with_target(false).init();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_printed_configuration_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rackswarm.toml");
        std::fs::write(&file, controller::print_config()).unwrap();
        assert_eq!(configuration(Some(&file)).unwrap().0, Config::default());
    }

    #[test]
    fn dhcp_lines_name_the_address_that_machines_see() {
        let mut config = Config::default();
        assert!(dhcp_lines(&config, DhcpServer::Isc).unwrap_err().to_string().contains("server.advertise"));
        config.server.advertise = Some(Ipv4Addr::new(10, 7, 0, 1));
        assert!(dhcp_lines(&config, DhcpServer::Isc).unwrap().contains("10.7.0.1"));
        config.server.advertise = None;
        config.server.listen = "10.7.0.2:80".parse().unwrap();
        assert!(dhcp_lines(&config, DhcpServer::Dnsmasq).unwrap().contains("10.7.0.2"));
    }
}
