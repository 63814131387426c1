// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package workload serves the API by which the processes of a pod ask their guest for secrets, tokens and evidence. It
// is CoCo's REST API (api-server-rest of guest-components): the same paths, parameters, bodies and status codes.
//
// Containers reach it over a Unix socket of their own and, if the policy opens a port, over the guest's loopback
// address. A container's part of the policy says what it may ask for (policy.Workload); a container without such a
// part has no socket, and a pod without any has no port. The agent accepts the connections, finds out whose they are
// and passes them on (agent/workload). Connections of others are answered with 403, so those of the agent's
// port-forward.
//
// Requests, connections and times are bounded for each container, so that one cannot shut the others out.
package workload

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/coco-shim/coco/attestation/kbs/client"
	"github.com/coco-shim/coco/policy"
)

// Broker gives what the pod's key broker releases; client.Client implements it.
type Broker interface {
	Resource(ctx context.Context, path string) ([]byte, error)
	Token(ctx context.Context) (client.Token, error)
}

// Config has the sources of the API's answers, and the rights of each container.
type Config struct {
	Policy  *policy.Policy
	Version string
	// Tokens has a session of its own, because a token's key may leave the guest, and secrets are not to be encrypted to
	// that key.
	Broker, Tokens Broker
	Attester       Attester // nil: the guest has none
	Azure          Azure    // nil: the policy opens nothing of it
}

// API answers the requests of containers.
type API struct {
	cfg        Config
	containers map[string]*policy.Container // that may ask for anything, by name
	busy       counter                      // requests by container
	way        *net.UnixConn                // to the agent; set by Serve
}

// maxBusy is how many requests of a container are answered at the same time. Each may hold a connection to the broker.
const maxBusy = 4

// New makes an API.
func New(cfg Config) *API {
	a := &API{cfg: cfg, containers: map[string]*policy.Container{}, busy: counter{most: maxBusy}}
	for i := range cfg.Policy.Containers {
		if c := &cfg.Policy.Containers[i]; c.Workload.Opens() {
			a.containers[c.Name] = c
		}
	}
	return a
}

// refusal is an answer other than 200.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// answer is an answer with 200.
type answer struct {
	kind string
	body []byte
}

const (
	kindJSON  = "application/json"
	kindBytes = "application/octet-stream"
)

// serve answers a request of a container; nil: of somebody else.
func (a *API) serve(w http.ResponseWriter, r *http.Request, c *policy.Container) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if c != nil && a.cfg.Azure != nil && a.cfg.Azure.Has(r.URL.Path) {
		if isGRPC(r) {
			a.grpc(w, r, c)
		} else {
			a.azure(w, r, c)
		}
		return
	}
	out, err := a.answer(r, c)
	if err == nil {
		h.Set("Content-Type", out.kind)
		h.Set("Content-Length", strconv.Itoa(len(out.body)))
		_, _ = w.Write(out.body) // it may have gone
		return
	}
	status := http.StatusInternalServerError
	var no *refusal
	if errors.As(err, &no) {
		status = no.status
	}
	if c == nil {
		h.Set("Connection", "close")
	}
	if status == http.StatusTooManyRequests {
		h.Set("Retry-After", "1")
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(strings.ToValidUTF8(err.Error(), "?") + "\n")) //nolint:gosec // plain text, and nosniff
}

// answer decides about a request.
func (a *API) answer(r *http.Request, c *policy.Container) (answer, error) {
	if c == nil {
		return answer{}, &refusal{http.StatusForbidden, "only containers of this pod whose policy has workload may ask"}
	}
	if !a.busy.take(c.Name) {
		return answer{}, &refusal{
			http.StatusTooManyRequests,
			fmt.Sprintf("container %s has %d requests that are being answered; repeat it later", c.Name, maxBusy),
		}
	}
	defer a.busy.give(c.Name)
	if r.ContentLength != 0 {
		return answer{}, &refusal{http.StatusBadRequest, "a request has no body"}
	}
	call, rest := r.URL.EscapedPath(), ""
	if s, ok := strings.CutPrefix(call, "/cdh/resource/"); ok {
		call, rest = "/cdh/resource", s
	}
	of, ok := calls[call]
	switch {
	case !ok:
		return answer{}, &refusal{http.StatusNotFound, fmt.Sprintf("there is no %.200q; there are /info, /cdh/resource/, "+
			"/aa/token, /aa/evidence and /coco/renew", r.URL.EscapedPath())}
	case r.Method != of.method:
		return answer{}, &refusal{http.StatusMethodNotAllowed, fmt.Sprintf("%s is asked for with %s", call, of.method)}
	case of.name != "" && !slices.Contains(c.Workload.Calls, of.name):
		return answer{}, &refusal{http.StatusNotFound, fmt.Sprintf("the policy does not open %s to container %s: "+
			"containers[%s].workload.calls with %q", call, c.Name, c.Name, of.name)}
	}
	q, err := query(r.URL)
	if err != nil {
		return answer{}, err
	}
	return of.serve(a, r.Context(), question{c, rest, q})
}

// question is a container's request: the path of a resource, or parameters.
type question struct {
	of     *policy.Container
	path   string
	params map[string]string
}

// calls are the paths of the API. name is the policy's word for a call.
var calls = map[string]struct {
	name, method string
	serve        func(*API, context.Context, question) (answer, error)
}{
	"/info":         {policy.CallInfo, http.MethodGet, (*API).info},
	"/cdh/resource": {"", http.MethodGet, (*API).resource},
	"/aa/token":     {policy.CallToken, http.MethodGet, (*API).token},
	"/aa/evidence":  {policy.CallEvidence, http.MethodGet, (*API).evidenceFor},
	"/coco/renew":   {policy.CallRenew, http.MethodPost, (*API).renew}, // coco's own
}

// query reads parameters, of which each may stand once.
func query(u *url.URL) (map[string]string, error) {
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, "the query is not of the form name=value&name=value"}
	}
	out := map[string]string{}
	for name, list := range values {
		if len(list) != 1 {
			return nil, &refusal{http.StatusBadRequest, fmt.Sprintf("the parameter %.40q stands %d times", name, len(list))}
		}
		out[name] = list[0]
	}
	return out, nil
}

// info tells version and type of TEE, and which of CoCo's features the container has.
func (a *API) info(_ context.Context, q question) (answer, error) {
	out := struct {
		Version string `json:"version"`
		TEE     string `json:"tee,omitempty"`
		Feature string `json:"feature"`
	}{Version: a.cfg.Version, Feature: "all"}
	if a.cfg.Attester != nil {
		out.TEE = a.cfg.Attester.TEE()
	}
	w := q.of.Workload
	attests := slices.Contains(w.Calls, policy.CallToken) || slices.Contains(w.Calls, policy.CallEvidence)
	switch {
	case !attests:
		out.Feature = "resource"
	case len(w.Resources) == 0:
		out.Feature = "attestation"
	}
	return asJSON(out, kindJSON)
}

func asJSON(v any, kind string) (answer, error) {
	b, err := json.Marshal(v)
	return answer{kind, b}, err
}

// resource gets a secret that the container may have.
func (a *API) resource(ctx context.Context, q question) (answer, error) {
	if !slices.Contains(q.of.Workload.Resources, "kbs:///"+q.path) {
		return answer{}, &refusal{http.StatusForbidden, fmt.Sprintf("the policy does not open this secret to container %s: "+
			"containers[%s].workload.resources with %q", q.of.Name, q.of.Name, "kbs:///"+clip(q.path))}
	}
	secret, err := a.cfg.Broker.Resource(ctx, q.path)
	return answer{kindBytes, secret}, brokerError(err)
}

func clip(s string) string { return s[:min(len(s), 200)] }

// token gets a new token. Its key comes along only where the policy says so.
func (a *API) token(ctx context.Context, q question) (answer, error) {
	switch kind, ok := q.params["token_type"]; {
	case !ok:
		return answer{}, &refusal{http.StatusBadRequest, "the parameter token_type is missing"}
	case kind != "kbs":
		return answer{}, &refusal{http.StatusBadRequest, fmt.Sprintf("token_type %.40q: known is kbs", kind)}
	}
	t, err := a.cfg.Tokens.Token(ctx)
	if err != nil {
		return answer{}, brokerError(err)
	}
	out := struct {
		Token string `json:"token"`
		Key   string `json:"tee_keypair,omitempty"`
	}{Token: t.JWT}
	if q.of.Workload.ExportKey {
		pem, err := t.Key.PEM()
		if err != nil {
			return answer{}, err
		}
		out.Key = string(pem)
	}
	return asJSON(out, kindBytes)
}

// brokerError puts the reason of a failure before its sentence.
func brokerError(err error) error {
	var e *client.Error
	if errors.As(err, &e) {
		return fmt.Errorf("[%s] %w", e.Reason, err)
	}
	return err
}

// evidenceFor makes evidence with the parameter runtime_data in it.
func (a *API) evidenceFor(ctx context.Context, q question) (answer, error) {
	text, ok := q.params["runtime_data"]
	if !ok {
		return answer{}, &refusal{http.StatusBadRequest, "the parameter runtime_data is missing"}
	}
	data := []byte(text)
	switch encoding, ok := q.params["encoding"]; {
	case !ok:
	case encoding != "base64":
		return answer{}, &refusal{http.StatusBadRequest, fmt.Sprintf("encoding %.40q: known is base64", encoding)}
	default:
		var err error
		if data, err = base64.RawURLEncoding.Strict().DecodeString(text); err != nil {
			return answer{}, &refusal{http.StatusBadRequest, "runtime_data is not in base64url without padding"}
		}
	}
	if len(data) > maxData {
		return answer{}, &refusal{http.StatusBadRequest, fmt.Sprintf("runtime_data has %d bytes, at most %d are taken",
			len(data), maxData)}
	}
	if a.cfg.Attester == nil {
		return answer{}, errors.New("[no-evidence] the guest has no means to make evidence")
	}
	text2, err := a.evidence(ctx, q.of, data)
	var no *refusal
	if err != nil && !errors.As(err, &no) {
		err = fmt.Errorf("[%s] %w", client.NoEvidence, err)
	}
	return answer{kindBytes, text2}, err
}
