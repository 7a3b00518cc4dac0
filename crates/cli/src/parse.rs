//! Values of options that are more than a word.

use std::net::Ipv4Addr;
use std::str::FromStr;

use fleet::disk::Allow;
use fleet::post::Network;
use ipnet::Ipv4Net;

/// A size as people write it: `500`, `480GB` (10^9), `480GiB` or `480G` (2^30).
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "`{text}` is not a size: write bytes, or a number with kB, MB, GB, TB (powers of 1000) or K, M, G, T, KiB, MiB, GiB, TiB (powers of 1024)"
        )
    };
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return Err(wrong()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 3 || (number.contains('.') && fraction.is_empty()) {
        return Err(wrong());
    }
    let whole = u64::from_str(whole).ok().and_then(|whole| whole.checked_mul(factor)).ok_or_else(wrong)?;
    let thousandths =
        if fraction.is_empty() { 0 } else { u64::from_str(&format!("{fraction:0<3}")).map_err(|_| wrong())? };
    let part = u64::try_from(u128::from(thousandths) * u128::from(factor) / 1_000).map_err(|_| wrong())?;
    whole.checked_add(part).ok_or_else(wrong)
}

/// `dhcp`, `keep`, or `static:ADDRESS/PREFIX[,GATEWAY[,DNS...]]`; an empty gateway is none.
pub(crate) fn network(text: &str) -> Result<Network, String> {
    let fields = match text {
        "dhcp" => return Ok(Network::Dhcp),
        "keep" => return Ok(Network::Keep),
        _ => text.strip_prefix("static:").ok_or_else(|| {
            format!("`{text}` is no network: write dhcp, keep, or static:ADDRESS/PREFIX,GATEWAY,DNS as in static:10.0.0.7/24,10.0.0.1,10.0.0.2")
        })?,
    };
    let mut fields = fields.split(',').map(str::trim);
    let address = fields.next().unwrap_or_default();
    let parsed: Ipv4Net =
        address.parse().map_err(|_| format!("`{address}` is no address with its prefix length, as in 10.0.0.7/24"))?;
    let host = |text: &str| text.parse::<Ipv4Addr>().map_err(|_| format!("`{text}` is no IPv4 address"));
    let gateway = match fields.next().filter(|gateway| !gateway.is_empty()) {
        None => None,
        Some(gateway) if parsed.contains(&host(gateway)?) => Some(gateway.to_owned()),
        Some(gateway) => return Err(format!("the gateway {gateway} is not in {}", parsed.trunc())),
    };
    let dns = fields.map(|server| host(server).map(|server| server.to_string())).collect::<Result<Vec<_>, _>>()?;
    Ok(Network::Static { address: parsed.to_string(), gateway, dns })
}

/// What a disk rule does not refuse; `none` is nothing.
pub(crate) fn allowed(word: &str) -> Result<Option<Allow>, String> {
    let known = Allow::ALL.into_iter().find(|allow| allow.as_str() == word);
    match known {
        None if word != "none" => {
            let words: Vec<&str> = Allow::ALL.iter().map(|allow| allow.as_str()).collect();
            Err(format!("`{word}` cannot be allowed: write {}, or none", words.join(", ")))
        }
        known => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_take_both_kinds_of_units() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("480GB", 480_000_000_000),
            ("1.5T", 3 << 39),
            ("2 MiB", 2 << 20),
            ("1.92TB", 1_920_000_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in
            ["", "G", "1.G", "1..5G", "-1", "1 kg", "99999999999999999999", "18446744073709551615T", "1.23456G"]
        {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_are_checked() {
        assert_eq!(network("dhcp"), Ok(Network::Dhcp));
        assert_eq!(network("keep"), Ok(Network::Keep));
        let fixed = |gateway: Option<&str>, dns: &[&str]| Network::Static {
            address: "10.0.0.7/24".into(),
            gateway: gateway.map(Into::into),
            dns: dns.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(network("static:10.0.0.7/24"), Ok(fixed(None, &[])));
        assert_eq!(network("static:10.0.0.7/24,10.0.0.1"), Ok(fixed(Some("10.0.0.1"), &[])));
        assert_eq!(network("static:10.0.0.7/24,,9.9.9.9, 1.1.1.1"), Ok(fixed(None, &["9.9.9.9", "1.1.1.1"])));
        for wrong in [
            "",
            "DHCP",
            "static:",
            "static:10.0.0.7",
            "static:10.0.0.7/33",
            "static:10.0.0.7/24,10.0.1.1",
            "static:10.0.0.7/24,10.0.0.1,dns",
        ] {
            assert!(network(wrong).is_err(), "{wrong}");
        }
    }
}
