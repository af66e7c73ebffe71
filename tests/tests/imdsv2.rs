//! Session tokens as EC2 has them: who gets one, what it opens, when it stops.

use std::time::Duration;

use imds_tests::{Guest, Host, INSTANCE_ID, TOKEN, TOKEN_FIELD, TTL_FIELD, eventually};

/// Asks once and compares the status.
fn check(guest: &Guest, method: &str, path: &str, fields: &[(&str, &str)], status: u16) {
    let response = guest.request(method, path, fields);
    assert_eq!(
        response.status(),
        status,
        "{method} {path} {fields:?}: {response:?}"
    );
    assert_eq!(response.header("server"), Some("EC2ws"), "{response:?}");
}

#[test]
fn where_tokens_are_optional_both_versions_work() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let token = web.put_token(21_600);
    check(&web, "GET", INSTANCE_ID, &[], 200);
    check(&web, "GET", INSTANCE_ID, &[(TOKEN_FIELD, &token)], 200);
    check(&web, "GET", INSTANCE_ID, &[(TOKEN_FIELD, "nonsense")], 401);
    check(&web, "GET", "/latest/meta-data/nothing", &[], 404);
    check(
        &web,
        "GET",
        "/latest/meta-data/nothing",
        &[(TOKEN_FIELD, &token)],
        404,
    );
}

#[test]
fn where_tokens_are_required_nothing_is_told_without_one() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let _daemon = host.start();
    for path in [
        "/",
        "/latest/",
        INSTANCE_ID,
        "/latest/meta-data/nothing",
        "/latest/user-data",
    ] {
        check(&web, "GET", path, &[], 401);
        check(&web, "GET", path, &[(TOKEN_FIELD, "nonsense")], 401);
    }
    let token = web.put_token(60);
    check(&web, "GET", "/", &[(TOKEN_FIELD, &token)], 200);
    check(&web, "GET", INSTANCE_ID, &[(TOKEN_FIELD, &token)], 200);
    check(&web, "HEAD", INSTANCE_ID, &[(TOKEN_FIELD, &token)], 200);
    check(
        &web,
        "GET",
        "/latest/meta-data/nothing",
        &[(TOKEN_FIELD, &token)],
        404,
    );
}

#[test]
fn a_token_answer_looks_like_ec2s() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let minted = web.request("PUT", TOKEN, &[(TTL_FIELD, "21600")]);
    assert_eq!(
        (minted.status(), minted.body.len()),
        (200, 56),
        "{minted:?}"
    );
    assert_eq!(minted.header(TTL_FIELD), Some("21600"));
    let told = web.request("GET", INSTANCE_ID, &[(TOKEN_FIELD, minted.text())]);
    let left: u32 = told
        .header(TTL_FIELD)
        .expect("the seconds left")
        .parse()
        .expect("a number");
    assert!((21_500..=21_600).contains(&left), "{left} seconds left");
    assert_eq!(web.get(INSTANCE_ID).header(TTL_FIELD), None);
}

#[test]
fn a_wrong_lifetime_brings_no_token() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    for ttl in ["0", "-1", "21601", "1.5", "ten", "", "99999999999999999999"] {
        check(&web, "PUT", TOKEN, &[(TTL_FIELD, ttl)], 400);
    }
    check(&web, "PUT", TOKEN, &[], 400);
    check(
        &web,
        "PUT",
        "/2021-03-23/api/token",
        &[(TTL_FIELD, "60")],
        403,
    );
    check(&web, "PUT", "/latest/api/token/", &[(TTL_FIELD, "60")], 403);
    check(&web, "GET", TOKEN, &[], 405);
}

#[test]
fn what_a_proxy_forwards_brings_no_token_and_opens_nothing() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let token = web.put_token(60);
    check(
        &web,
        "PUT",
        TOKEN,
        &[(TTL_FIELD, "60"), ("X-Forwarded-For", "10.0.0.1")],
        403,
    );
    check(
        &web,
        "GET",
        INSTANCE_ID,
        &[(TOKEN_FIELD, &token), ("X-Forwarded-For", "10.0.0.1")],
        403,
    );
    check(
        &web,
        "GET",
        INSTANCE_ID,
        &[("X-Forwarded-For", "10.0.0.1")],
        200,
    );
}

#[test]
fn a_disabled_endpoint_refuses_everything() {
    let Some(mut host) = Host::new() else { return };
    let web = host
        .guest("web")
        .routed("10.0.0.10")
        .option("http-endpoint", "\"disabled\"")
        .up();
    let db = host.guest("db").routed("10.0.0.10").up();
    let _daemon = host.start();
    check(&web, "PUT", TOKEN, &[(TTL_FIELD, "60")], 403);
    check(&web, "GET", INSTANCE_ID, &[], 403);
    check(&web, "GET", "/", &[], 403);
    check(&db, "GET", INSTANCE_ID, &[], 200);
}

/// The rule to the second is the business of the unit tests, where time is an argument. Here: it does end.
#[test]
fn a_token_ends() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").tokens_required().up();
    let _daemon = host.start();
    let token = web.put_token(1);
    eventually(
        "the end of a token of one second",
        Duration::from_secs(5),
        || (web.get_with_token(INSTANCE_ID, &token).status() == 401).then_some(()),
    );
}

#[test]
fn a_connection_stays_open_only_when_asked_to() {
    let Some(mut host) = Host::new() else { return };
    let web = host.guest("web").routed("10.0.0.10").up();
    let _daemon = host.start();
    let mut plain = web.connect();
    let answer = plain.exchange("GET", INSTANCE_ID, &[]).expect("an answer");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(
        plain.receive_raw(Duration::from_secs(5)),
        (Vec::new(), true)
    );

    let mut kept = web.connect();
    for _ in 0..3 {
        let answer = kept.get(INSTANCE_ID, &[]);
        assert_eq!((answer.status(), answer.header("connection")), (200, None));
    }
}
