//! Queries and answers of trackers mean the same after a round trip.

use rackswarm_wire::announce::{AnnounceRequest, Answer, decode_scrape, decode_scrape_query, encode_scrape};

/// Tries `data` as every kind of query and answer; says whether it is one.
pub fn check(data: &[u8]) -> bool {
    let query = std::str::from_utf8(data).is_ok_and(check_query);
    let answer = check_answer(data);
    let scrape = check_scrape(data);
    query || answer || scrape
}

fn check_query(query: &str) -> bool {
    let _ = decode_scrape_query(query);
    let Ok(request) = AnnounceRequest::decode_query(query) else { return false };
    assert_eq!(AnnounceRequest::decode_query(&request.encode_query()), Ok(request));
    true
}

fn check_answer(data: &[u8]) -> bool {
    let Ok(answer) = Answer::decode(data) else { return false };
    // The dictionary form keeps everything.
    let long = answer.encode(false).expect("a decoded answer can be written");
    assert_eq!(Answer::decode(&long).as_ref(), Ok(&answer));
    // The compact form keeps addresses, first those of version 4.
    let short = answer.encode(true).expect("a decoded answer can be written");
    if let (Answer::Peers(all), Ok(Answer::Peers(back))) = (&answer, Answer::decode(&short)) {
        let v4 = all.peers.iter().filter(|peer| peer.address.is_ipv4());
        let v6 = all.peers.iter().filter(|peer| peer.address.is_ipv6());
        assert!(v4.chain(v6).map(|peer| peer.address).eq(back.peers.iter().map(|peer| peer.address)));
    }
    true
}

fn check_scrape(data: &[u8]) -> bool {
    let Ok(entries) = decode_scrape(data) else { return false };
    let again = encode_scrape(&entries).expect("decoded entries can be written");
    assert_eq!(decode_scrape(&again), Ok(entries));
    true
}
