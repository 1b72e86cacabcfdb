//! The floor: what a reverse proxy of axum and hyper costs that does nothing but forward.

use crate::Fallible;
use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, StatusCode, Uri, header, uri::Authority},
    response::{IntoResponse, Response},
    routing::post,
    serve::ListenerExt,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::net::TcpListener;

/// RFC 9110, §7.6.1.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

#[derive(Clone)]
struct Floor {
    client: Client<HttpConnector, Body>,
    upstream: Authority,
}

pub(crate) async fn serve(listener: TcpListener, upstream: &str) -> Fallible {
    let mut tcp = HttpConnector::new();
    tcp.set_nodelay(true);
    let floor =
        Floor { client: Client::builder(TokioExecutor::new()).build(tcp), upstream: upstream.parse()? };
    let router = Router::new()
        .route("/v1/chat/completions", post(forward))
        .route("/v1/messages", post(forward))
        .with_state(floor);
    let listener = listener.tap_io(|stream| {
        let _ = stream.set_nodelay(true);
    });
    Ok(axum::serve(listener, router).await?)
}

/// Head and body go on as they come, in both directions.
async fn forward(State(floor): State<Floor>, mut request: Request) -> Response {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let Ok(uri) =
        Uri::builder().scheme("http").authority(floor.upstream.clone()).path_and_query(path).build()
    else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    *request.uri_mut() = uri;
    request.headers_mut().remove(header::HOST);
    strip(request.headers_mut());
    match floor.client.request(request).await {
        Ok(mut response) => {
            strip(response.headers_mut());
            response.map(Body::new)
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}

fn strip(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}
