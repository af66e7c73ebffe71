//! Binary.
fn main() {
    imds_user::dataplane::load::load(1, imds_user::dataplane::load::KernelLog::Off)
        .map(|_| ())
        .unwrap();
}
