//! The published OpenAPI document is the one that the handlers generate.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[test]
fn the_published_document_is_the_generated_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/generated/openapi.json");
    let generated = rackswarm_controller::openapi_json();
    if std::env::var_os("RACKSWARM_WRITE_GENERATED").is_some() {
        std::fs::write(path, &generated).unwrap();
    }
    let published = std::fs::read_to_string(path).unwrap_or_default();
    assert!(published == generated, "run this test with RACKSWARM_WRITE_GENERATED=1 to write {path} anew");
}

#[test]
fn every_operation_is_described_and_may_answer_with_a_problem() {
    let document: serde_json::Value = serde_json::from_str(&rackswarm_controller::openapi_json()).unwrap();
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 18, "{} paths", paths.len());
    for (path, item) in paths {
        for (method, operation) in item.as_object().unwrap() {
            let described = operation["summary"].as_str().or(operation["description"].as_str());
            assert!(described.is_some_and(|text| text.len() > 8), "{method} {path} has no description");
            assert!(operation["responses"]["default"].is_object(), "{method} {path} names no problem");
        }
    }
    assert_eq!(document["security"][0]["bearer"], serde_json::json!([]));
}
