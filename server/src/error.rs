//! Errors as clients see them.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use cupola_llm::LlmError;
use cupola_text::TextError;
use serde_json::{Value, json};

/// What went wrong with a request.
#[derive(Debug)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
}

pub(crate) type Outcome<T> = Result<T, ApiError>;

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            message: message.into(),
        }
    }

    /// A request that cannot be meant.
    pub fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// A request whose time is over.
    pub fn late() -> ApiError {
        ApiError::new(StatusCode::GATEWAY_TIMEOUT, "the request took too long")
    }

    /// The error as the API spells it.
    pub fn document(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": {
            "message": self.message,
            "type": kind,
            "param": null,
            "code": self.status.as_u16(),
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.document())).into_response()
    }
}

impl From<LlmError> for ApiError {
    fn from(error: LlmError) -> ApiError {
        let status = match &error {
            LlmError::QueueFull(_) => StatusCode::TOO_MANY_REQUESTS,
            LlmError::Request(_) | LlmError::TooLong { .. } => StatusCode::BAD_REQUEST,
            LlmError::Runtime(_)
            | LlmError::NoDecoder(..)
            | LlmError::Snapshot(_)
            | LlmError::NotFinite => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error.to_string())
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> ApiError {
        ApiError::bad(error.to_string())
    }
}
