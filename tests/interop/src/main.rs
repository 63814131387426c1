// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

//! Asks crates that are not ours about messages, tokens and evidence of coco. A JSON list of cases comes on stdin; for
//! each, in the same order, an answer goes to stdout: what the crate has read, or why it refuses.

use std::io::Read;

use base64::prelude::{Engine, BASE64_STANDARD};
use serde_json::{json, Value};
use sev::{certs::snp::Chain, certs::snp::Verifiable, firmware::guest::AttestationReport, parser::ByteParser};

/// A token as crate ear reads it, verified by a key of the broker's JWKS.
macro_rules! token {
    ($ear:ident, $case:expr) => {{
        let key = $case["jwk"].to_string();
        let result = $ear::Ear::from_jwt_jwk(text($case, "text"), $ear::Algorithm::ES256, key.as_bytes())
            .map_err(|e| e.to_string())?;
        result.validate().map_err(|e| e.to_string())?;
        let statuses: Vec<String> = result.submods.values().map(|part| part.status.to_string()).collect();
        Ok(json!({ "status": statuses.join(" ") }))
    }};
}

type Answer = Result<Value, String>;

fn main() {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).expect("read the cases");
    let cases: Vec<Value> = serde_json::from_str(&text).expect("the cases are a JSON list");
    let answers: Vec<Value> = cases
        .iter()
        .map(|case| match judge(case) {
            Ok(value) => json!({ "value": value }),
            Err(why) => json!({ "refused": why }),
        })
        .collect();
    println!("{}", Value::Array(answers));
}

fn judge(case: &Value) -> Answer {
    match case["kind"].as_str().unwrap_or_default() {
        "request" => parsed::<kbs_types::Request>(case),
        "challenge" => parsed::<kbs_types::Challenge>(case),
        "attestation" => parsed::<kbs_types::Attestation>(case),
        "response" => parsed::<kbs_types::Response>(case),
        "error" => parsed::<kbs_types::ErrorInformation>(case),
        "ear" => token!(ear, case),
        "ear6" => token!(ear6, case),
        "tdx" => quote(case),
        "snp" => report(case),
        kind => panic!("unknown kind of case: {kind}"),
    }
}

fn text<'a>(case: &'a Value, member: &str) -> &'a str {
    case[member].as_str().unwrap_or_else(|| panic!("a case without {member}"))
}

fn bytes(case: &Value, member: &str) -> Vec<u8> {
    BASE64_STANDARD.decode(text(case, member)).expect("base64")
}

/// The message as crate kbs-types reads it, and writes it again.
fn parsed<T: serde::de::DeserializeOwned + serde::Serialize>(case: &Value) -> Answer {
    let message: T = serde_json::from_str(text(case, "text")).map_err(|e| e.to_string())?;
    serde_json::to_value(message).map_err(|e| e.to_string())
}

/// The status of a quote by crate dcap-qvl.
fn quote(case: &Value) -> Answer {
    let collateral: dcap_qvl::QuoteCollateralV3 =
        serde_json::from_value(case["collateral"].clone()).map_err(|e| format!("collateral: {e}"))?;
    let now = case["now"].as_u64().expect("a time");
    dcap_qvl::verify::QuoteVerifier::new(bytes(case, "root"))
        .allow_debug(true)
        .verify(&bytes(case, "quote"), &collateral, now)
        .map(|r| json!({ "status": r.status, "advisories": r.advisory_ids }))
        .map_err(|e| format!("{e:#}"))
}

/// Whether crate sev finds that the chain's last key has signed the report.
fn report(case: &Value) -> Answer {
    let chain = Chain::from_der(&bytes(case, "ark"), &bytes(case, "ask"), &bytes(case, "vek")).map_err(|e| e.to_string())?;
    let report = AttestationReport::from_bytes(&bytes(case, "report")).map_err(|e| e.to_string())?;
    (&chain, &report).verify().map_err(|e| e.to_string())?;
    Ok(json!({ "version": report.version, "vmpl": report.vmpl, "measurement": BASE64_STANDARD.encode(report.measurement) }))
}
