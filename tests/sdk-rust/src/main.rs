//! Asks the AWS SDK for Rust what a program on an instance asks of it, and prints the answers, `NAME=VALUE` a line:
//! region and credentials from the default chain, the instance's id from the IMDS client, and who one is from STS.

use std::error::Error;
use std::time::UNIX_EPOCH;

use aws_config::BehaviorVersion;
use aws_config::imds::Client as ImdsClient;
use aws_config::provider_config::ProviderConfig;
use aws_sdk_sts::config::ProvideCredentials;

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(ask())
}

async fn ask() -> Result<(), Box<dyn Error>> {
    let http = aws_smithy_http_client::Builder::new().build_http();
    let config = aws_config::defaults(BehaviorVersion::latest())
        .http_client(http.clone())
        .load()
        .await;
    println!(
        "region={}",
        config.region().map_or("none", |region| region.as_ref())
    );

    let credentials = config
        .credentials_provider()
        .ok_or("the default chain has no provider of credentials")?
        .provide_credentials()
        .await?;
    println!("access-key-id={}", credentials.access_key_id());
    println!("secret-access-key={}", credentials.secret_access_key());
    println!("token={}", credentials.session_token().unwrap_or("none"));
    if let Some(expiry) = credentials.expiry() {
        println!("expiry={}", expiry.duration_since(UNIX_EPOCH)?.as_secs());
    }

    let imds = ImdsClient::builder()
        .configure(&ProviderConfig::without_region().with_http_client(http))
        .build();
    let id = imds.get("/latest/meta-data/instance-id").await?;
    println!("instance-id={}", id.as_ref());

    let identity = aws_sdk_sts::Client::new(&config)
        .get_caller_identity()
        .send()
        .await?;
    println!("account={}", identity.account().unwrap_or("none"));
    println!("arn={}", identity.arn().unwrap_or("none"));
    Ok(())
}
