//! Refusals: EC2's error codes, their status, and the three envelopes in which a client looks for them.
//!
//! A refusal is always a 4xx. Clients repeat a 5xx, Terraform for minutes, so what is not supported is said to be so; only
//! what is broken here, and may be whole at the next attempt, is [`Code::InternalError`].

use std::borrow::Cow;
use std::fmt;

use super::sigv4::Fault;
use super::xml::Xml;

/// The services that have their endpoint here, as the scope of a signature names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// `ec2`
    Ec2,
    /// `sts`
    Sts,
    /// `iam`
    Iam,
    /// `sns`
    Sns,
    /// `config`
    Config,
    /// `ssm`
    Ssm,
    /// `events`
    Events,
    /// `monitoring`
    CloudWatch,
}

/// How a service is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// EC2's own: a form, and XML without a wrapper around the result.
    Ec2Query,
    /// The plain query protocol: a form, and XML.
    Query,
    /// A JSON document each way.
    Json,
}

impl Service {
    /// Every service.
    pub const ALL: [Self; 8] = [
        Self::Ec2,
        Self::Sts,
        Self::Iam,
        Self::Sns,
        Self::Config,
        Self::Ssm,
        Self::Events,
        Self::CloudWatch,
    ];

    /// Its name in a signature's scope.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ec2 => "ec2",
            Self::Sts => "sts",
            Self::Iam => "iam",
            Self::Sns => "sns",
            Self::Config => "config",
            Self::Ssm => "ssm",
            Self::Events => "events",
            Self::CloudWatch => "monitoring",
        }
    }

    /// The service of that name.
    #[must_use]
    pub fn from_scope(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|service| service.as_str() == name)
    }

    /// The service that `X-Amz-Target` names, for requests whose signature names none.
    #[must_use]
    pub fn from_target(target: &str) -> Option<Self> {
        match target.split_once('.')?.0 {
            "StarlingDoveService" => Some(Self::Config),
            "AmazonSSM" => Some(Self::Ssm),
            "AWSEvents" => Some(Self::Events),
            "GraniteServiceVersion20100801" => Some(Self::CloudWatch),
            _ => None,
        }
    }

    /// How it is spoken to, unless a request shows otherwise ([`super::gate::spoken`]).
    #[must_use]
    pub fn protocol(self) -> Protocol {
        match self {
            Self::Ec2 => Protocol::Ec2Query,
            Self::Sts | Self::Iam | Self::Sns => Protocol::Query,
            Self::Config | Self::Ssm | Self::Events | Self::CloudWatch => Protocol::Json,
        }
    }
}

/// A service, and how a request speaks to it. CloudWatch was a query service and is a JSON service for the clients of today.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// The service.
    pub service: Service,
    /// How it is to be answered.
    pub protocol: Protocol,
}

impl From<Service> for Spoken {
    fn from(service: Service) -> Self {
        Self {
            service,
            protocol: service.protocol(),
        }
    }
}

/// Defines the codes, each with its status.
macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal;)*) => {
        /// An error code of the EC2 API (EC2 API Reference, "Error codes for the Amazon EC2 API").
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The code as it stands in an answer.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                }
            }

            /// The status of an answer with it.
            #[must_use]
            pub fn status(self) -> u16 {
                match self {
                    $(Self::$name => $status,)*
                }
            }
        }
    };
}

codes! {
    /// The credentials are not accepted.
    AuthFailure = "AuthFailure", 401;
    /// It would have been done.
    DryRunOperation = "DryRunOperation", 412;
    /// The same client token with other parameters.
    IdempotentParameterMismatch = "IdempotentParameterMismatch", 400;
    /// The signature is not whole.
    IncompleteSignature = "IncompleteSignature", 400;
    /// An association is in the way.
    IncorrectState = "IncorrectState", 400;
    /// Not in the state that the instance is in.
    IncorrectInstanceState = "IncorrectInstanceState", 400;
    /// Something is broken here: clients try again.
    InternalError = "InternalError", 500;
    /// No such action.
    InvalidAction = "InvalidAction", 400;
    /// No such image.
    InvalidAmiIdNotFound = "InvalidAMIID.NotFound", 400;
    /// Not an image's id.
    InvalidAmiIdMalformed = "InvalidAMIID.Malformed", 400;
    /// No such association of an instance profile.
    InvalidAssociationIdNotFound = "InvalidAssociationID.NotFound", 400;
    /// No such security group.
    InvalidGroupNotFound = "InvalidGroup.NotFound", 400;
    /// No such instance profile, or an ARN of something else.
    InvalidIamInstanceProfile = "InvalidIamInstanceProfileArn.Malformed", 400;
    /// Not an id of anything that is here.
    InvalidId = "InvalidID", 400;
    /// Not an instance's id.
    InvalidInstanceIdMalformed = "InvalidInstanceID.Malformed", 400;
    /// No such instance.
    InvalidInstanceIdNotFound = "InvalidInstanceID.NotFound", 400;
    /// No such instance type.
    InvalidInstanceType = "InvalidInstanceType", 400;
    /// A key that is none.
    InvalidKeyFormat = "InvalidKey.Format", 400;
    /// There is a key pair of that name.
    InvalidKeyPairDuplicate = "InvalidKeyPair.Duplicate", 400;
    /// Nobody launches guests here.
    InsufficientInstanceCapacity = "InsufficientInstanceCapacity", 400;
    /// No address left.
    InsufficientFreeAddressesInSubnet = "InsufficientFreeAddressesInSubnet", 400;
    /// No such key pair.
    InvalidKeyPairNotFound = "InvalidKeyPair.NotFound", 400;
    /// An address that somebody has.
    InvalidIpAddressInUse = "InvalidIPAddress.InUse", 400;
    /// No such network interface.
    InvalidNetworkInterfaceIdNotFound = "InvalidNetworkInterfaceID.NotFound", 400;
    /// Not a token of a page that came before.
    InvalidNextToken = "InvalidNextToken", 400;
    /// Parameters that exclude each other.
    InvalidParameterCombination = "InvalidParameterCombination", 400;
    /// A value that is none of that parameter.
    InvalidParameterValue = "InvalidParameterValue", 400;
    /// No such route table.
    InvalidRouteTableIdNotFound = "InvalidRouteTableID.NotFound", 400;
    /// No such subnet.
    InvalidSubnetIdNotFound = "InvalidSubnetID.NotFound", 400;
    /// User data that is too long or not in base64.
    InvalidUserDataMalformed = "InvalidUserData.Malformed", 400;
    /// No such volume.
    InvalidVolumeNotFound = "InvalidVolume.NotFound", 400;
    /// No such VPC.
    InvalidVpcIdNotFound = "InvalidVpcID.NotFound", 400;
    /// No place left.
    InstanceLimitExceeded = "InstanceLimitExceeded", 400;
    /// Neither a form nor a query.
    MalformedQueryString = "MalformedQueryString", 400;
    /// No `Action`.
    MissingAction = "MissingAction", 400;
    /// A parameter is missing.
    MissingParameter = "MissingParameter", 400;
    /// Protected by an attribute of the instance.
    OperationNotPermitted = "OperationNotPermitted", 400;
    /// Signed too long ago.
    RequestExpired = "RequestExpired", 400;
    /// Another writer was faster, again and again.
    RequestLimitExceeded = "RequestLimitExceeded", 503;
    /// Larger than any request need be.
    RequestEntityTooLarge = "RequestEntityTooLarge", 413;
    /// More tags than a resource may have.
    TagLimitExceeded = "TagLimitExceeded", 400;
    /// The key may not do that.
    UnauthorizedOperation = "UnauthorizedOperation", 403;
    /// Not a parameter of the action.
    UnknownParameter = "UnknownParameter", 400;
    /// A feature of EC2's that is not here.
    UnsupportedOperation = "UnsupportedOperation", 400;
    /// What services besides EC2 say of parameters that do not do.
    ValidationError = "ValidationError", 400;
}

/// Why a request is refused, in EC2's words. What went wrong inside is for the log, never in here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", code.as_str())]
pub struct Refusal {
    /// The code.
    pub code: Code,
    /// For people.
    pub message: Cow<'static, str>,
}

impl Refusal {
    /// A refusal with these words.
    #[must_use]
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// The action would have been done, had it not been a rehearsal.
    #[must_use]
    pub fn dry_run() -> Self {
        Self::new(
            Code::DryRunOperation,
            "Request would have succeeded, but DryRun flag is set.",
        )
    }

    /// The caller may not do that.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(
            Code::UnauthorizedOperation,
            "You are not authorized to perform this operation.",
        )
    }

    /// No such action of that service.
    #[must_use]
    pub fn invalid_action(action: &str) -> Self {
        Self::new(
            Code::InvalidAction,
            format!("The action {action} is not valid for this web service."),
        )
    }

    /// A parameter must be given.
    #[must_use]
    pub fn missing(parameter: &str) -> Self {
        Self::new(
            Code::MissingParameter,
            format!("The request must contain the parameter {parameter}"),
        )
    }

    /// A parameter has a value that is none of its.
    #[must_use]
    pub fn invalid_value(value: &str, parameter: &str, right: impl fmt::Display) -> Self {
        Self::new(
            Code::InvalidParameterValue,
            format!("Value ({value}) for parameter {parameter} is invalid. {right}"),
        )
    }

    /// A feature of EC2's that is not here.
    #[must_use]
    pub fn unsupported(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::UnsupportedOperation, message)
    }
}

/// An answer to a client: what goes over the wire but for the connection's own headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// `x-amzn-RequestId`: where JSON has its id, and the others theirs a second time.
    pub request_id: String,
    /// `x-amzn-query-error`: the code that clients knew while the service was a query service.
    pub query_error: Option<String>,
    /// The document.
    pub body: Vec<u8>,
}

impl Reply {
    /// The refusal in the envelope of that service.
    #[must_use]
    pub fn refusal(spoken: impl Into<Spoken>, refusal: &Refusal, request_id: &str) -> Self {
        let spoken = spoken.into();
        let code = spelling(spoken.protocol, refusal.code);
        Self::error(
            spoken,
            code,
            status(spoken.protocol, refusal.code),
            &refusal.message,
            request_id,
        )
    }

    /// The refusal of somebody who is not known, in the words of that service. Which of the two is wrong, key or signature,
    /// EC2 does not say.
    #[must_use]
    pub fn unknown_caller(spoken: impl Into<Spoken>, fault: &Fault, request_id: &str) -> Self {
        const EC2: &str = "AWS was not able to validate the provided access credentials";
        const TOKEN: &str = "The security token included in the request is invalid.";
        const SIGNATURE: &str = "The request signature we calculated does not match the signature you provided. Check your \
                                 AWS Secret Access Key and signing method.";
        use Protocol::{Ec2Query, Json, Query};
        let spoken = spoken.into();
        let protocol = spoken.protocol;
        let (status, code, message) = match (fault, protocol) {
            (Fault::Incomplete(why), Json) => (400, "IncompleteSignatureException", *why),
            (Fault::Incomplete(why), _) => (400, "IncompleteSignature", *why),
            (Fault::NotNow, Ec2Query) => (400, "RequestExpired", "Request has expired."),
            (_, Ec2Query) => (401, "AuthFailure", EC2),
            (Fault::Unsigned, Query) => (
                403,
                "MissingAuthenticationToken",
                "Request is missing Authentication Token",
            ),
            (Fault::Unsigned, Json) => (
                403,
                "MissingAuthenticationTokenException",
                "Missing Authentication Token",
            ),
            (Fault::UnknownKey | Fault::Token, Query) => (403, "InvalidClientTokenId", TOKEN),
            (Fault::UnknownKey | Fault::Token, Json) => (400, "UnrecognizedClientException", TOKEN),
            (Fault::Mismatch, Query) => (403, "SignatureDoesNotMatch", SIGNATURE),
            (Fault::Mismatch, Json) => (400, "InvalidSignatureException", SIGNATURE),
            (Fault::Scope, Query) => (403, "SignatureDoesNotMatch", SCOPE),
            (Fault::Scope, Json) => (400, "InvalidSignatureException", SCOPE),
            (Fault::NotNow, Query) => (403, "SignatureDoesNotMatch", "Signature expired"),
            (Fault::NotNow, Json) => (400, "InvalidSignatureException", "Signature expired"),
        };
        Self::error(spoken, code, status, message, request_id)
    }

    /// An error in the envelope of that service: EC2's clients find no code in another.
    #[must_use]
    pub fn error(
        spoken: impl Into<Spoken>,
        code: &str,
        status: u16,
        message: &str,
        request_id: &str,
    ) -> Self {
        let Spoken { service, protocol } = spoken.into();
        let mut xml = Xml::document();
        match protocol {
            Protocol::Ec2Query => xml.within("Response", |xml| {
                xml.within("Errors", |xml| {
                    xml.within("Error", |xml| {
                        xml.el("Code", code).el("Message", message);
                    });
                });
                xml.el("RequestID", request_id);
            }),
            Protocol::Query => xml.within("ErrorResponse", |xml| {
                xml.within("Error", |xml| {
                    let side = side_of(status);
                    xml.el("Type", side).el("Code", code).el("Message", message);
                });
                xml.el("RequestId", request_id);
            }),
            Protocol::Json => {
                let kind = kind_of(service, code);
                let body = serde_json::json!({ "__type": kind, "message": message });
                let mut reply = Self::json(service, status, &body, request_id);
                if service == Service::CloudWatch {
                    reply.query_error = Some(format!("{code};{}", side_of(status)));
                }
                return reply;
            }
        };
        Self::xml(status, xml.into_bytes(), request_id)
    }

    /// A document of one of the query protocols.
    #[must_use]
    pub fn xml(status: u16, body: Vec<u8>, request_id: &str) -> Self {
        Self {
            status,
            content_type: "text/xml;charset=UTF-8",
            request_id: request_id.to_owned(),
            query_error: None,
            body,
        }
    }

    /// A document of a JSON service.
    #[must_use]
    pub fn json(service: Service, status: u16, body: &serde_json::Value, request_id: &str) -> Self {
        Self {
            status,
            content_type: match service {
                Service::CloudWatch => "application/x-amz-json-1.0",
                _ => "application/x-amz-json-1.1",
            },
            request_id: request_id.to_owned(),
            query_error: None,
            body: body.to_string().into_bytes(),
        }
    }
}

fn side_of(status: u16) -> &'static str {
    if status < 500 { "Sender" } else { "Receiver" }
}

/// What JSON has in place of the code: CloudWatch's model calls its errors otherwise than their codes.
fn kind_of(service: Service, code: &str) -> String {
    if service != Service::CloudWatch {
        return code.to_owned();
    }
    let name = match code {
        "InvalidParameterValue" => "InvalidParameterValueException",
        "InvalidParameterCombination" => "InvalidParameterCombinationException",
        "MissingParameter" => "MissingRequiredParameterException",
        other => other,
    };
    format!("com.amazonaws.cloudwatch#{name}")
}

const SCOPE: &str = "Credential should be scoped to the region and a service of this endpoint";

/// The same thing has other names elsewhere.
fn spelling(protocol: Protocol, code: Code) -> &'static str {
    match (protocol, code) {
        (Protocol::Query, Code::UnauthorizedOperation) => "AccessDenied",
        (Protocol::Json, Code::UnauthorizedOperation) => "AccessDeniedException",
        (Protocol::Json, Code::InvalidAction | Code::MissingAction) => "UnknownOperationException",
        (Protocol::Json, Code::InternalError) => "InternalFailure",
        (Protocol::Json, Code::MalformedQueryString) => "SerializationException",
        (_, code) => code.as_str(),
    }
}

fn status(protocol: Protocol, code: Code) -> u16 {
    match (protocol, code) {
        // No operation of these services has an error of another status in the model.
        (Protocol::Json, code) if code.status() < 500 => 400,
        (_, code) => code.status(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(service: Service, refusal: &Refusal, status: u16, body: &str) {
        let reply = Reply::refusal(service, refusal, "4a");
        assert_eq!(
            (reply.status, String::from_utf8_lossy(&reply.body).as_ref()),
            (status, body)
        );
    }

    #[test]
    fn every_service_has_its_own_envelope() {
        let refusal = Refusal::new(Code::InvalidParameterValue, "not <this>");
        check(
            Service::Ec2,
            &refusal,
            400,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Response><Errors><Error><Code>InvalidParameterValue</Code>\
             <Message>not &lt;this&gt;</Message></Error></Errors><RequestID>4a</RequestID></Response>",
        );
        check(
            Service::Sts,
            &refusal,
            400,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ErrorResponse><Error><Type>Sender</Type>\
             <Code>InvalidParameterValue</Code><Message>not &lt;this&gt;</Message></Error>\
             <RequestId>4a</RequestId></ErrorResponse>",
        );
        check(
            Service::Config,
            &refusal,
            400,
            r#"{"__type":"InvalidParameterValue","message":"not <this>"}"#,
        );
        check(
            Service::CloudWatch,
            &refusal,
            400,
            r#"{"__type":"com.amazonaws.cloudwatch#InvalidParameterValueException","message":"not <this>"}"#,
        );
        let by_query = Spoken {
            service: Service::CloudWatch,
            protocol: Protocol::Query,
        };
        let of = |spoken: Spoken| Reply::refusal(spoken, &refusal, "4a");
        assert_eq!(of(by_query), of(Service::Sts.into()));
        let known_before = of(Service::CloudWatch.into()).query_error;
        assert_eq!(
            known_before.as_deref(),
            Some("InvalidParameterValue;Sender")
        );
    }

    #[test]
    fn the_same_refusal_has_the_name_and_status_of_its_service() {
        for (service, expected) in [
            (Service::Ec2, (403, "UnauthorizedOperation")),
            (Service::Iam, (403, "AccessDenied")),
            (Service::CloudWatch, (400, "AccessDeniedException")),
        ] {
            let reply = Reply::refusal(service, &Refusal::unauthorized(), "4a");
            let body = String::from_utf8(reply.body).unwrap();
            assert!(
                reply.status == expected.0 && body.contains(expected.1),
                "{service:?} {} {body}",
                reply.status
            );
        }
    }

    #[test]
    fn who_is_not_known_is_refused_in_the_words_of_the_service() {
        let check = |fault: Fault, expected: [(u16, &str); 3]| {
            let services = [Service::Ec2, Service::Sts, Service::Config];
            for (service, (status, code)) in services.into_iter().zip(expected) {
                let reply = Reply::unknown_caller(service, &fault, "4a");
                let body = String::from_utf8(reply.body).unwrap();
                let has_code = body.contains(&format!(">{code}<"))
                    || body.contains(&format!(r#"{{"__type":"{code}","#));
                assert!(reply.status == status && has_code, "{fault:?} {body}");
            }
        };
        check(
            Fault::Unsigned,
            [
                (401, "AuthFailure"),
                (403, "MissingAuthenticationToken"),
                (403, "MissingAuthenticationTokenException"),
            ],
        );
        check(
            Fault::UnknownKey,
            [
                (401, "AuthFailure"),
                (403, "InvalidClientTokenId"),
                (400, "UnrecognizedClientException"),
            ],
        );
        check(
            Fault::Mismatch,
            [
                (401, "AuthFailure"),
                (403, "SignatureDoesNotMatch"),
                (400, "InvalidSignatureException"),
            ],
        );
        check(
            Fault::NotNow,
            [
                (400, "RequestExpired"),
                (403, "SignatureDoesNotMatch"),
                (400, "InvalidSignatureException"),
            ],
        );
        check(
            Fault::Incomplete("half"),
            [
                (400, "IncompleteSignature"),
                (400, "IncompleteSignature"),
                (400, "IncompleteSignatureException"),
            ],
        );
    }

    #[test]
    fn what_is_refused_is_never_repeated_by_a_client_but_for_what_may_succeed_next_time() {
        let repeated: Vec<_> = Code::ALL
            .iter()
            .filter(|code| code.status() >= 500)
            .collect();
        assert_eq!(
            repeated,
            [&Code::InternalError, &Code::RequestLimitExceeded]
        );
    }

    #[test]
    fn a_service_is_known_by_scope_or_target() {
        for service in Service::ALL {
            assert_eq!(Service::from_scope(service.as_str()), Some(service));
        }
        assert_eq!(Service::from_scope("s3"), None);
        for (target, service) in [
            (
                "StarlingDoveService.DescribeConfigRules",
                Some(Service::Config),
            ),
            (
                "GraniteServiceVersion20100801.GetMetricData",
                Some(Service::CloudWatch),
            ),
            ("AmazonSSM.GetAutomationExecution", Some(Service::Ssm)),
            ("AWSEvents.PutRule", Some(Service::Events)),
            ("DynamoDB_20120810.GetItem", None),
            ("AmazonSSM", None),
        ] {
            assert_eq!(Service::from_target(target), service, "{target}");
        }
    }
}
