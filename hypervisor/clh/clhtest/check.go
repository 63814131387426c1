// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clhtest

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path"
	"slices"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/legacy"

	"github.com/coco-shim/coco/hypervisor/clh/clhapi"
)

// checker holds requests and answers against descriptions of the API.
type checker []spec

type spec struct {
	name   string
	router routers.Router
	// wrong are the calls whose answers it describes other than the VMM gives them.
	wrong []string
}

// newChecker reads our description and, if there is one, the VMM's own.
func newChecker(reference string) (checker, error) {
	ours, err := load("our description", clhapi.Spec)
	if err != nil || reference == "" {
		return checker{ours}, err
	}
	text, err := os.ReadFile(reference)
	if err != nil {
		return nil, err
	}
	theirs, err := load("the VMM's description", text)
	theirs.wrong = []string{"vmm.shutdown"} // it says 204 for what is answered with 200
	return checker{ours, theirs}, err
}

func load(name string, text []byte) (spec, error) {
	doc, err := openapi3.NewLoader().LoadFromData(text)
	if err != nil {
		return spec{}, fmt.Errorf("%s: %w", name, err)
	}
	r, err := legacy.NewRouter(doc)
	if err != nil {
		return spec{}, fmt.Errorf("%s: %w", name, err)
	}
	return spec{name: name, router: r}, nil
}

// options keep the library from changing what it checks.
var options = &openapi3filter.Options{SkipSettingDefaults: true, ExcludeReadOnlyValidations: true}

// check returns what is wrong with a request and the answer to it. status 0: there was none.
func (c checker) check(req *http.Request, body []byte, status int, answer []byte) []string {
	var out []string
	for _, s := range c {
		r := req.Clone(context.Background())
		r.URL.Scheme, r.URL.Host = "http", "localhost"
		r.Body = http.NoBody
		if len(body) > 0 {
			r.Body = readCloser{bytes.NewReader(body)}
		}
		route, params, err := s.router.FindRoute(r)
		if err != nil {
			out = append(out, fmt.Sprintf("%s: %v", s.name, err))
			continue
		}
		in := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route, Options: options}
		if err := openapi3filter.ValidateRequest(context.Background(), in); err != nil {
			out = append(out, fmt.Sprintf("%s: request: %v", s.name, err))
		}
		if status == 0 || slices.Contains(s.wrong, path.Base(r.URL.Path)) {
			continue
		}
		head := http.Header{}
		if len(answer) > 0 {
			head.Set("Content-Type", "application/json")
		}
		res := &openapi3filter.ResponseValidationInput{
			RequestValidationInput: in, Status: status, Header: head,
			Options: options,
		}
		if len(answer) == 0 && status >= http.StatusBadRequest {
			continue // some errors have no body
		}
		if err := openapi3filter.ValidateResponse(context.Background(), res.SetBodyBytes(answer)); err != nil {
			out = append(out, fmt.Sprintf("%s: the fake's own answer: %v", s.name, err))
		}
	}
	return out
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }
