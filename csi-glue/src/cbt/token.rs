//! Tokens that a sidecar wants to see.

use std::fmt;
use std::pin::Pin;

/// A token of a service account. Its text is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes what a token request answered.
    ///
    /// # Errors
    /// When it is empty or holds anything but visible ASCII, such as the line break at the end of a file.
    pub fn new(text: impl Into<String>) -> Result<Self, TokenError> {
        let text = text.into();
        match text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.is_empty() {
            true => Ok(Self(text)),
            false => Err(TokenError("the token is empty, or holds blanks or line breaks".into())),
        }
    }

    /// The text, for the request.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// There is no token to be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TokenError(pub String);

/// Which token is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// One that is valid for a few more seconds.
    Valid,
    /// Another than the last, which was refused.
    New,
}

/// What [`TokenSource::token`] gives.
pub type TokenFuture<'a> = Pin<Box<dyn Future<Output = Result<Token, TokenError>> + Send + 'a>>;

/// Where tokens come from. It is asked before every stream, since a token may expire while one runs, and is the one to know
/// whether the last is still good.
pub trait TokenSource: Send + Sync {
    /// A token for the audience of the service.
    fn token(&self, need: Need) -> TokenFuture<'_>;
}

/// A function of `need` that has the token at hand.
impl<F> TokenSource for F
where
    F: Fn(Need) -> Result<Token, TokenError> + Send + Sync,
{
    fn token(&self, need: Need) -> TokenFuture<'_> {
        let token = self(need);
        Box::pin(std::future::ready(token))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_checked_and_not_shown() {
        let token = Token::new("ey.J0").unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
        assert!(Token::new("").is_err());
        assert!(Token::new("ey.J0\n").is_err());
    }
}
