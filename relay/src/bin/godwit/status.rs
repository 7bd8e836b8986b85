//! `godwit status`: the cluster, as one relay knows it.

use crate::fault::{Fault, UNREACHABLE, print};
use anyhow::anyhow;
use godwit_relay::cluster::report::{MemberReport, Report};
use std::time::Duration;

pub(crate) fn run(admin: &str, json: bool) -> Result<(), Fault> {
    let text = ask(admin)?;
    if json {
        return print(text.trim_end());
    }
    let report = parse(&text)?;
    print(&format!(
        "{}: {} relays up, {} claims of its own, {} of others, {} requests in its outbox",
        report.relay,
        report.members.iter().filter(|member| member.is_up()).count(),
        report.claims_own,
        report.claims_known,
        report.outbox,
    ))?;
    for member in &report.members {
        print(&line(member, member.relay == report.relay))?;
    }
    Ok(())
}

/// The cluster as the relay with this admin address knows it.
pub(crate) fn report(admin: &str) -> Result<Report, Fault> {
    parse(&ask(admin)?)
}

fn parse(text: &str) -> Result<Report, Fault> {
    Ok(serde_json::from_str(text).map_err(anyhow::Error::from)?)
}

fn ask(admin: &str) -> Result<String, Fault> {
    let unreachable = |error: ureq::Error| Fault::new(UNREACHABLE, anyhow!("admin {admin}: {error}"));
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
    let agent: ureq::Agent = config.into();
    let mut response = agent.get(format!("http://{admin}/cluster")).call().map_err(unreachable)?;
    response.body_mut().read_to_string().map_err(unreachable)
}

fn line(member: &MemberReport, own: bool) -> String {
    let known = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let link = match &member.link {
        Some(link) => format!(
            "v{}, {:.1} ms, {} bytes queued",
            link.version,
            Duration::from_micros(link.round_trip_micros).as_secs_f64() * 1e3,
            link.queued_bytes
        ),
        None if own => "this relay".to_owned(),
        None => "no link".to_owned(),
    };
    format!(
        "{:<16} {:<8} {:<5} {:<8} {:<21} {:>6} devices  {:>6} claims  {:>4} cpu  {}",
        member.relay.as_str(),
        member.region,
        member.role,
        member.state,
        member.address.to_string(),
        known(member.connections.map(|count| count.to_string())),
        member.claims,
        known(member.cpu_permille.map(|share| format!("{}%", share / 10))),
        link
    )
}
