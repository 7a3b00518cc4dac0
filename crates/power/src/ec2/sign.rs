//! AWS Signature Version 4 for a POST with a form body, written after the "Signature Version 4" specification: HMAC-SHA-256
//! over a canonical form of the request. A crate for it would bring the vendor's whole HTTP stack.

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use crate::secret::Secret;

/// Who signs, and for what.
pub(super) struct Signer<'a> {
    pub(super) access_key: &'a str,
    pub(super) secret_key: &'a Secret,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

impl Signer<'_> {
    /// The `Authorization` header of a POST to `/`. `headers` are those that are signed, names in lower case and in order;
    /// `time` is `20150830T123600Z`.
    pub(super) fn authorization(&self, headers: &[(&str, &str)], body: &[u8], time: &str) -> String {
        let day = time.get(..8).unwrap_or(time);
        let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let request = format!("POST\n/\n\n{lines}\n{names}\n{}", HEXLOWER.encode(&Sha256::digest(body)));
        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let hash = HEXLOWER.encode(&Sha256::digest(request));
        let signature = HEXLOWER.encode(&mac(&self.key(day), &format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{hash}")));
        format!("AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}", self.access_key)
    }

    /// The key of a day, a region and a service.
    fn key(&self, day: &str) -> Vec<u8> {
        let first = format!("AWS4{}", self.secret_key.expose()).into_bytes();
        [day, self.region, self.service, "aws4_request"].iter().fold(first, |key, part| mac(&key, part))
    }
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    // HMAC takes keys of any length (RFC 2104, section 3).
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return Vec::new() };
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use super::*;

    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    #[test]
    fn the_specification_s_vectors_come_out() {
        let secret = Secret::new(SECRET);
        // "post-x-www-form-urlencoded" of the published test suite.
        let signer = Signer { access_key: "AKIDEXAMPLE", secret_key: &secret, region: "us-east-1", service: "service" };
        let headers = [
            ("content-type", "application/x-www-form-urlencoded"),
            ("host", "example.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ];
        let header = signer.authorization(&headers, b"Param1=value1", "20150830T123600Z");
        assert_eq!(
            header,
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=content-type;host;x-amz-date, \
             Signature=ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a"
        );
        // The worked example of the signing key.
        let iam = Signer { service: "iam", ..signer };
        assert_eq!(
            HEXLOWER.encode(&iam.key("20150830")),
            "c4afb1cc5771d871763a393e44b703571b55cc28424d1a5e86da6ed3c154a4b9"
        );
    }

    #[test]
    fn the_hmac_is_that_of_rfc_4231() {
        let key = [0x0b; 20];
        assert_eq!(
            HEXLOWER.encode(&mac(&key, "Hi There")),
            "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"
        );
    }
}
