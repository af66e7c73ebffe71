//! The domain parameters of the DSA keys: published ones, the same for every installation.
//!
//! Good parameters take a second of work and gain nothing: they are no secret, and an attacker would have to attack each
//! key made with them by itself. These are two of RFC 5114 (2.1: a prime of 1024 bits with a subgroup of 160, as DSA and
//! SHA-1 want it; 2.3: 2048 and 256 bits), which every TLS library has, so that anyone can compare them.

use dsa::{BoxedUint, Components};

/// Domain parameters: prime, order of the subgroup, generator; hexadecimal, as the RFC prints them.
pub(super) struct Parameters {
    prime: &'static str,
    order: &'static str,
    generator: &'static str,
}

/// RFC 5114, 2.1.
pub(super) const BITS_1024: Parameters = Parameters {
    prime: concat!(
        "B10B8F96A080E01DDE92DE5EAE5D54EC52C99FBCFB06A3C69A6A9DCA52D23B61",
        "6073E28675A23D189838EF1E2EE652C013ECB4AEA906112324975C3CD49B83BF",
        "ACCBDD7D90C4BD7098488E9C219A73724EFFD6FAE5644738FAA31A4FF55BCCC0",
        "A151AF5F0DC8B4BD45BF37DF365C1A65E68CFDA76D4DA708DF1FB2BC2E4A4371",
    ),
    order: "F518AA8781A8DF278ABA4E7D64B7CB9D49462353",
    generator: concat!(
        "A4D1CBD5C3FD34126765A442EFB99905F8104DD258AC507FD6406CFF14266D31",
        "266FEA1E5C41564B777E690F5504F213160217B4B01B886A5E91547F9E2749F4",
        "D7FBD7D3B9A92EE1909D0D2263F80A76A6A24C087A091F531DBF0A0169B6A28A",
        "D662A4D18E73AFA32D779D5918D08BC8858F4DCEF97C2A24855E6EEB22B3B2E5",
    ),
};

/// RFC 5114, 2.3.
pub(super) const BITS_2048: Parameters = Parameters {
    prime: concat!(
        "87A8E61DB4B6663CFFBBD19C651959998CEEF608660DD0F25D2CEED4435E3B00",
        "E00DF8F1D61957D4FAF7DF4561B2AA3016C3D91134096FAA3BF4296D830E9A7C",
        "209E0C6497517ABD5A8A9D306BCF67ED91F9E6725B4758C022E0B1EF4275BF7B",
        "6C5BFC11D45F9088B941F54EB1E59BB8BC39A0BF12307F5C4FDB70C581B23F76",
        "B63ACAE1CAA6B7902D52526735488A0EF13C6D9A51BFA4AB3AD8347796524D8E",
        "F6A167B5A41825D967E144E5140564251CCACB83E6B486F6B3CA3F7971506026",
        "C0B857F689962856DED4010ABD0BE621C3A3960A54E710C375F26375D7014103",
        "A4B54330C198AF126116D2276E11715F693877FAD7EF09CADB094AE91E1A1597",
    ),
    order: "8CF83642A709A097B447997640129DA299B1A47D1EB3750BA308B0FE64F5FBD3",
    generator: concat!(
        "3FB32C9B73134D0B2E77506660EDBD484CA7B18F21EF205407F4793A1A0BA125",
        "10DBC15077BE463FFF4FED4AAC0BB555BE3A6C1B0C6B47B1BC3773BF7E8C6F62",
        "901228F8C28CBB18A55AE31341000A650196F931C77A57F2DDF463E5E9EC144B",
        "777DE62AAAB8A8628AC376D282D6ED3864E67982428EBC831D14348F6F2F9193",
        "B5045AF2767164E1DFC967C1FB3F2E55A4BD1BFFE83B9C80D052B985D182EA0A",
        "DB2A3B7313D3FE14C8484B1E052588B9B7D2BBD2DF016199ECD06E1557CD0915",
        "B3353BBB64E0EC377FD028370DF92B52C7891428CDC67EB6184B523D1DB246C3",
        "2F63078490F00EF8D647D148D47954515E2327CFEF98C582664B4C0F6CC41659",
    ),
};

impl Parameters {
    pub(super) fn components(&self) -> Components {
        let [prime, order, generator] = [self.prime, self.order, self.generator].map(number);
        Components::from_components(prime, order, generator)
            .expect("a unit test makes the components of each constant")
    }
}

fn number(hexadecimal: &str) -> BoxedUint {
    let bytes: Vec<u8> = hexadecimal
        .as_bytes()
        .chunks(2)
        .map(|digits| {
            let digits = std::str::from_utf8(digits).expect("the constants are ASCII");
            u8::from_str_radix(digits, 16).expect("the constants are hexadecimal")
        })
        .collect();
    BoxedUint::from_be_slice_vartime(&bytes)
}

#[cfg(test)]
mod tests {
    use crypto_primes::{Flavor, is_prime};
    use dsa::VerifyingKey;

    use super::*;

    #[test]
    fn primes_are_prime_and_generators_of_the_order_that_is_told() {
        for (parameters, prime_bits, order_bits) in [(BITS_1024, 1024, 160), (BITS_2048, 2048, 256)]
        {
            let components = parameters.components();
            let (p, q) = (components.p().as_ref(), components.q().as_ref());
            assert_eq!((p.bit_width(), q.bit_width()), (prime_bits, order_bits));
            assert!(is_prime(Flavor::Any, p) && is_prime(Flavor::Any, q));
            // A public key must be of the order; the generator is the public key of 1.
            let generator = components.g().as_ref().clone();
            assert!(VerifyingKey::from_components(components, generator).is_ok());
        }
    }
}
