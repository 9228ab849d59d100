//! Paths and methods: which question a request asks.

use hyper::Method;

use super::error::ApiError;
use super::tfs;

/// A question that the doors answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route<'a> {
    Server,
    Live,
    Ready,
    Models,
    Model(Target<'a>),
    ModelReady(Target<'a>),
    Infer(Target<'a>),
    Config(Target<'a>),
    /// Without a target: of all models.
    Statistics(Option<Target<'a>>),
    RepositoryIndex,
    /// To load or to unload a model.
    RepositoryChange,
    Metrics,
    /// In TensorFlow Serving's words.
    Tensorflow(tfs::route::Asked<'a>),
}

/// The model a path names; without a version the active one is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target<'a> {
    pub model: &'a str,
    pub version: Option<&'a str>,
}

impl<'a> Route<'a> {
    /// Finds the question, or says 404 or 405. A query string plays no part.
    pub fn of(method: &Method, path: &'a str) -> Result<Self, ApiError> {
        let route = Self::of_path(path)
            .ok_or_else(|| ApiError::not_found(format!("there is nothing at {path:?}")))?;
        let (allowed, words): (&[Method], _) = match route {
            Self::Infer(_) | Self::RepositoryIndex | Self::RepositoryChange => {
                (&[Method::POST], "POST")
            }
            Self::Tensorflow(asked) if asked.question.is_posted() => (&[Method::POST], "POST"),
            _ => (&[Method::GET, Method::HEAD], "GET, HEAD"),
        };
        if allowed.contains(method) {
            Ok(route)
        } else {
            Err(ApiError::method(words))
        }
    }

    fn of_path(path: &'a str) -> Option<Self> {
        if let Some(path) = path.strip_prefix("/v1/models/") {
            return tfs::route::of_path(path).map(Self::Tensorflow);
        }
        let rest = match path {
            "/v2" => return Some(Self::Server),
            "/metrics" => return Some(Self::Metrics),
            _ => path.strip_prefix("/v2/")?,
        };
        let rest = match rest {
            "health/live" => return Some(Self::Live),
            "health/ready" => return Some(Self::Ready),
            "models" => return Some(Self::Models),
            // As in Triton: a model of this name is asked for by its version.
            "models/stats" => return Some(Self::Statistics(None)),
            "repository/index" => return Some(Self::RepositoryIndex),
            _ => rest,
        };
        if let Some(change) = rest.strip_prefix("repository/models/") {
            let (model, verb) = change.split_once('/')?;
            let known = !model.is_empty() && matches!(verb, "load" | "unload");
            return known.then_some(Self::RepositoryChange);
        }
        let rest = rest.strip_prefix("models/")?;
        let mut parts = rest.split('/');
        let model = parts.next().filter(|model| !model.is_empty())?;
        let mut target = Target {
            model,
            version: None,
        };
        let mut verb = parts.next();
        if verb == Some("versions") {
            target.version = Some(parts.next().filter(|version| !version.is_empty())?);
            verb = parts.next();
        }
        if parts.next().is_some() {
            return None;
        }
        match verb {
            None => Some(Self::Model(target)),
            Some("ready") => Some(Self::ModelReady(target)),
            Some("infer") => Some(Self::Infer(target)),
            Some("config") => Some(Self::Config(target)),
            Some("stats") => Some(Self::Statistics(Some(target))),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_protocol_is_found() {
        let target = |version| Target {
            model: "digits",
            version,
        };
        for (path, route) in [
            ("/v2", Route::Server),
            ("/v2/health/live", Route::Live),
            ("/v2/health/ready", Route::Ready),
            ("/v2/models", Route::Models),
            ("/v2/models/digits", Route::Model(target(None))),
            ("/v2/models/digits/ready", Route::ModelReady(target(None))),
            (
                "/v2/models/digits/versions/3",
                Route::Model(target(Some("3"))),
            ),
            (
                "/v2/models/digits/versions/1.0.0/ready",
                Route::ModelReady(target(Some("1.0.0"))),
            ),
            ("/v2/models/digits/config", Route::Config(target(None))),
            ("/v2/models/stats", Route::Statistics(None)),
            (
                "/v2/models/digits/versions/3/stats",
                Route::Statistics(Some(target(Some("3")))),
            ),
            ("/metrics", Route::Metrics),
        ] {
            assert_eq!(Route::of(&Method::GET, path).expect(path), route);
        }
        for path in [
            "/v2/models/digits/infer",
            "/v2/models/digits/versions/2/infer",
        ] {
            assert!(matches!(
                Route::of(&Method::POST, path),
                Ok(Route::Infer(_))
            ));
        }
        for (path, route) in [
            ("/v2/repository/index", Route::RepositoryIndex),
            (
                "/v2/repository/models/digits/unload",
                Route::RepositoryChange,
            ),
        ] {
            assert_eq!(Route::of(&Method::POST, path).expect(path), route);
        }
    }

    #[test]
    fn everything_else_is_404_and_a_wrong_method_405_with_the_right_one() {
        for path in [
            "/",
            "",
            "/v2/",
            "/v3",
            "/v2/models/",
            "/v2/models//infer",
            "/v2/models/a/b",
            "/v2x",
            "/v2/models/a/infer/",
            "/v2/models/a/versions",
            "/v2/models/a/versions//infer",
            "/v2/models/a/versions/1/2",
            "/v2/repository",
            "/v2/repository/models/a/delete",
            "/v2/repository/models//load",
            "/metrics/",
            "*",
        ] {
            let error = Route::of(&Method::GET, path).expect_err(path);
            assert_eq!(error.status, 404, "{path}");
        }
        let error = Route::of(&Method::GET, "/v2/models/a/infer").expect_err("infer");
        let response = error.into_response();
        assert_eq!(response.status(), 405);
        assert_eq!(response.headers()["allow"], "POST");
        assert_eq!(
            Route::of(&Method::POST, "/v2").expect_err("server").status,
            405
        );
    }
}
