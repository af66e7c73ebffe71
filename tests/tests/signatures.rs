//! What AWS's own signer signs is taken for its owner's, and nothing else is: whatever byte of it is changed.

use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use imds_tests::Random;
use imds_user::api::query::Query;
use imds_user::api::sigv4::{Fault, Request, claim};
use imds_user::instance::{Secret, UnixSeconds};

const KEY_ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const REGION: &str = "us-east-1";
const HOST: &str = "127.0.0.1:4566";
const NOW: u64 = 1_800_000_000;
const ROUNDS: usize = 40;

/// A request as it goes over the wire.
#[derive(Clone, Debug, PartialEq)]
struct Sent {
    method: String,
    path: String,
    query: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    token: Option<String>,
}

impl Sent {
    /// One that nobody signed yet.
    fn make_up(random: &Random) -> Self {
        let pick = |from: &[&'static str]| from[random.below(from.len())].to_owned();
        let method = pick(&["POST", "GET"]);
        let query = match method.as_str() {
            "GET" => form(&made_up_fields(random)),
            _ => String::new(),
        };
        let body = match method.as_str() {
            "POST" => form(&made_up_fields(random)).into_bytes(),
            _ => Vec::new(),
        };
        let mut headers = vec![
            ("host".to_owned(), HOST.as_bytes().to_vec()),
            (
                "content-type".to_owned(),
                b"application/x-www-form-urlencoded; charset=utf-8".to_vec(),
            ),
        ];
        if random.below(2) == 0 {
            headers.push(("x-amz-target".to_owned(), b"StarlingDoveService.X".to_vec()));
        }
        Self {
            method,
            path: pick(&["/", "/service/Granite/operation/GetMetricData", "/a%20b"]),
            query,
            headers,
            body,
            token: (random.below(2) == 0).then(|| "FwoGZXIvYXdzEXAMPLE+/=".to_owned()),
        }
    }

    /// Signs it as the SDK does.
    fn sign(&mut self, location: SignatureLocation, at: u64) {
        let credentials = Credentials::new(KEY_ID, SECRET, self.token.clone(), None, "test");
        let identity = credentials.into();
        let mut settings = SigningSettings::default();
        settings.signature_location = location;
        if location == SignatureLocation::QueryParams {
            settings.expires_in = Some(Duration::from_secs(600));
        }
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(REGION)
            .name("ec2")
            .time(UNIX_EPOCH + Duration::from_secs(at))
            .settings(settings)
            .build()
            .expect("parameters are whole")
            .into();
        let mark = if self.query.is_empty() { "" } else { "?" };
        let uri = format!("http://{HOST}{}{mark}{}", self.path, self.query);
        let headers = self.headers.iter();
        let headers = headers.map(|(name, value)| {
            let value = std::str::from_utf8(value).expect("ours are text");
            (name.as_str(), value)
        });
        let body = SignableBody::Bytes(&self.body);
        let signable = SignableRequest::new(&self.method, uri, headers, body).expect("signable");
        let (signed, _) = sign(signable, &params).expect("signed").into_parts();
        let (headers, query) = signed.into_parts();
        for header in headers {
            let value = header.value().as_bytes().to_vec();
            self.headers
                .push((header.name().to_ascii_lowercase(), value));
        }
        for (name, value) in query {
            if !self.query.is_empty() {
                self.query.push('&');
            }
            self.query
                .push_str(&form(&[(name.to_owned(), value.into_owned())]));
        }
    }

    fn verified(&self, now: u64) -> Result<(), Fault> {
        let headers: Vec<_> = self
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_slice()))
            .collect();
        let request = Request {
            method: &self.method,
            path: &self.path,
            query: &self.query,
            headers: &headers,
            body: &self.body,
        };
        let claim = claim(&request)?;
        if claim.key_id != KEY_ID {
            return Err(Fault::UnknownKey);
        }
        if claim.service != "ec2" {
            return Err(Fault::Scope);
        }
        let token = self.token.as_deref().map(Secret::from);
        claim.verify(
            &request,
            &SECRET.into(),
            token.as_ref(),
            REGION,
            UnixSeconds(now),
        )
    }

    /// Every byte that a server acts upon.
    fn bytes(&mut self) -> Vec<&mut u8> {
        let mut bytes: Vec<&mut u8> = self.body.iter_mut().collect();
        for (_, value) in &mut self.headers {
            bytes.extend(value);
        }
        bytes
    }

    /// One bit of one byte is another: in the body, a header's value, the path, the query, or the method.
    fn flip(&mut self, random: &Random) {
        let bit = 1 << random.below(7);
        let flip_text = |text: &mut String| {
            let at = random.below(text.len());
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= bit;
            *text = String::from_utf8(bytes).expect("ASCII stays ASCII below the highest bit");
        };
        match random.below(8) {
            0 => flip_text(&mut self.method),
            1 => flip_text(&mut self.path),
            2 | 3 if !self.query.is_empty() => flip_text(&mut self.query),
            _ => {
                let mut bytes = self.bytes();
                let at = random.below(bytes.len());
                *bytes[at] ^= bit;
            }
        }
    }
}

/// Fields of any characters. Names are as long as it takes to be different.
fn made_up_fields(random: &Random) -> Vec<(String, String)> {
    const PARTS: &[&str] = &["Filter", "Name", "Value", "1", "12", "é", "Tag"];
    const CHARACTERS: &[char] = &[
        'a',
        'Z',
        '0',
        ' ',
        '+',
        '%',
        '&',
        '=',
        '/',
        '?',
        '#',
        '~',
        '*',
        '.',
        '-',
        'é',
        '\u{1f980}',
        '\0',
        '\n',
        '"',
        '<',
        ':',
    ];
    let n_fields = 1 + random.below(8);
    let field = |index: usize| {
        let n_parts = 1 + random.below(4);
        let mut name = format!("F{index}");
        for _ in 0..n_parts {
            name.push('.');
            name.push_str(PARTS[random.below(PARTS.len())]);
        }
        let n_characters = random.below(12);
        let value = (0..n_characters).map(|_| CHARACTERS[random.below(CHARACTERS.len())]);
        (name, value.collect())
    };
    (0..n_fields).map(field).collect()
}

/// As SDKs write it: everything but the unreserved characters as `%41`.
fn form(fields: &[(String, String)]) -> String {
    let encode = |text: &str| {
        let encoded = text.bytes().map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        });
        encoded.collect::<String>()
    };
    let fields = fields.iter();
    let fields = fields.map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    fields.collect::<Vec<_>>().join("&")
}

/// Signs requests of every kind, and names the seed when something does not hold.
fn with_signed(mut check: impl FnMut(&Random, &Sent)) {
    let random = Random::by_time();
    for location in [SignatureLocation::Headers, SignatureLocation::QueryParams] {
        for _ in 0..ROUNDS {
            let mut sent = Sent::make_up(&random);
            sent.sign(location, NOW);
            let outcome =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&random, &sent)));
            assert!(
                outcome.is_ok(),
                "IMDS_TEST_SEED={}: {sent:?}",
                random.seed()
            );
        }
    }
}

#[test]
fn what_the_sdk_signs_is_verified() {
    with_signed(|_, sent| assert_eq!(sent.verified(NOW), Ok(())));
}

#[test]
fn one_changed_bit_is_refused_wherever_it_is() {
    with_signed(|random, sent| {
        for _ in 0..50 {
            let mut changed = sent.clone();
            changed.flip(random);
            if means_the_same(sent, &changed) {
                continue;
            }
            assert!(changed.verified(NOW).is_err(), "{changed:?}");
        }
    });
}

/// A query may be encoded in more than one way, as `+` and a space are, and the spaces around a header's value are not
/// its.
fn means_the_same(sent: &Sent, changed: &Sent) -> bool {
    let meaning = |sent: &Sent| {
        let mut sent = sent.clone();
        let decoded = decode(&sent.query);
        sent.query.clear();
        let unspaced = |value: &Vec<u8>| {
            let words = value
                .split(|byte| *byte == b' ')
                .filter(|word| !word.is_empty());
            words.collect::<Vec<_>>().join(&b' ')
        };
        for (_, value) in &mut sent.headers {
            *value = unspaced(value);
        }
        (decoded, sent)
    };
    meaning(sent) == meaning(changed)
}

/// The fields of a query, sorted. The test's own reading, not the one that is tested.
fn decode(query: &str) -> Vec<Vec<u8>> {
    let mut fields: Vec<_> = query
        .split('&')
        .filter(|field| !field.is_empty())
        .map(|field| {
            let mut bytes = Vec::new();
            let mut rest = field.as_bytes();
            while let Some((first, after)) = rest.split_first() {
                let escaped = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
                match (
                    first,
                    escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()),
                ) {
                    (b'%', Some(byte)) => {
                        bytes.push(byte);
                        rest = &after[2..];
                        continue;
                    }
                    (b'+', _) => bytes.push(b' '),
                    _ => bytes.push(*first),
                }
                rest = after;
            }
            bytes
        })
        .collect();
    fields.sort();
    fields
}

#[test]
fn a_presigned_request_ends_with_its_life() {
    let random = Random::by_time();
    let mut sent = Sent::make_up(&random);
    sent.sign(SignatureLocation::QueryParams, NOW);
    assert_eq!(sent.verified(NOW + 600), Ok(()));
    assert_eq!(sent.verified(NOW + 601), Err(Fault::NotNow));
    assert_eq!(sent.verified(NOW - 901), Err(Fault::NotNow));
}

#[test]
fn a_query_comes_back_as_it_was_written() {
    let random = Random::by_time();
    for _ in 0..500 {
        let mut fields = made_up_fields(&random);
        let read = Query::read(b"", form(&fields).as_bytes());
        let mut read = read
            .unwrap_or_else(|refusal| panic!("{refusal} {fields:?}"))
            .fields();
        read.sort();
        fields.sort();
        assert_eq!(read, fields, "IMDS_TEST_SEED={}", random.seed());
    }
}

#[test]
fn any_bytes_are_a_query_or_refused() {
    const LIKELY: &[u8] = b"&=%.+1a\xff";
    let random = Random::by_time();
    for _ in 0..20_000 {
        let n_bytes = random.below(40);
        let byte = |_| match random.below(3) {
            0 => random.next().to_le_bytes()[0],
            _ => LIKELY[random.below(LIKELY.len())],
        };
        let bytes: Vec<u8> = (0..n_bytes).map(byte).collect();
        if let Ok(query) = Query::read(b"", &bytes) {
            let params = query.params();
            let _is_given = (
                params.list("1"),
                params.text("a"),
                params.at("a.1").is_given(),
            );
            assert!(query.unknown().len() <= query.fields().len(), "{bytes:?}");
        }
    }
}
