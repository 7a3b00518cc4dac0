//! Serves a Redfish controller before machines, to try Rackswarm without iron:
//! `virtual_bmc ADDRESS:PORT PASSWORD_FILE RULES DRIVER...`, where each DRIVER is a power address (`fake:node1`,
//! `qemu:/path/vm.toml`), the systems are called 1, 2, ..., the user is `admin`, and RULES are those of
//! `power::virtual_bmc::Rules::parse`, or an empty word.

use std::error::Error;
use std::process::ExitCode;

use rackswarm_power::open;
use rackswarm_power::virtual_bmc::{Rules, VirtualBmc};

#[tokio::main]
async fn main() -> ExitCode {
    match serve().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("virtual_bmc: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [listen, password_file, rules, drivers @ ..] = words.as_slice() else {
        return Err("say: virtual_bmc ADDRESS:PORT PASSWORD_FILE RULES DRIVER...".into());
    };
    let password = std::fs::read_to_string(password_file)?;
    let mut systems = Vec::new();
    for (number, driver) in drivers.iter().enumerate() {
        systems.push(((number + 1).to_string(), open(driver)?));
    }
    let listener = tokio::net::TcpListener::bind(listen).await?;
    let first = password.lines().next().unwrap_or_default();
    let bmc = VirtualBmc::start(listener, "admin", first, Rules::parse(rules)?, systems)?;
    println!("a Redfish controller is served on http://{}/redfish/v1/ until Ctrl-C", bmc.address());
    tokio::signal::ctrl_c().await?;
    println!("{:?}", bmc.seen());
    Ok(())
}
