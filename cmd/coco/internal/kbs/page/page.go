// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package page shows what a key broker has: names of secrets, policies, sets of reference values and the last
// attestations. It asks the broker as an administrator and serves the answer to browsers of this host; the browser gets
// no token, and nothing can be changed.
package page

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"

	"github.com/coco-shim/coco/attestation/broker/references"
	"github.com/coco-shim/coco/attestation/broker/store"
	"github.com/coco-shim/coco/cmd/coco/internal/webpage"
)

//go:embed page.html
var pageText string

var pageTemplate = webpage.Template(pageText, template.FuncMap{
	"at":    func(t time.Time) string { return t.UTC().Format(time.DateTime) },
	"day":   func(t time.Time) string { return t.UTC().Format(time.DateOnly) },
	"short": func(digest string) string { return digest[:min(len(digest), 12)] },
	// Names in attestations begin with that of the plugin.
	"secret": func(name string) string { return strings.TrimPrefix(name, "resource/") },
})

// Ask gets the JSON of an administrator's route of the broker into v.
type Ask func(ctx context.Context, path string, v any) error

// shown is the content of the page, as the broker's routes name its members.
type shown struct {
	Broker       string
	At           time.Time
	Attestations []struct {
		Number   uint64          `json:"number"`
		Time     time.Time       `json:"time"`
		TEE      string          `json:"tee"`
		Address  string          `json:"address"`
		Status   string          `json:"status"`
		Reason   string          `json:"reason"`
		InitData string          `json:"init_data"`
		Asked    map[string]bool `json:"asked"` // whether the secret was given, by its name
	}
	Secrets  []store.Entry
	Sets     []references.Set
	Policies [2]policy
}

type policy struct{ Kind, Text string }

// Expired says whether a set has ended.
func (s shown) Expired(end time.Time) bool { return !s.At.Before(end) }

// Insecure says whether the broker has seen evidence that proves nothing.
func (s shown) Insecure() bool {
	for _, a := range s.Attestations {
		if a.TEE == "sample" {
			return true
		}
	}
	return false
}

// Handler serves the page of a broker.
func Handler(broker string, ask Ask) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		s := shown{Broker: broker, At: time.Now()}
		var b bytes.Buffer
		err := s.load(r.Context(), ask)
		if err == nil {
			err = pageTemplate.Execute(&b, s)
		}
		if err != nil {
			http.Error(w, "the broker does not answer: "+err.Error(), http.StatusBadGateway)
			return
		}
		webpage.SetHeader(w.Header())
		_, _ = b.WriteTo(w) // the client may be gone
	})
}

func (s *shown) load(ctx context.Context, ask Ask) error {
	for path, v := range map[string]any{
		"/admin/attestations": &s.Attestations, "/admin/resources": &s.Secrets, "/admin/references": &s.Sets,
	} {
		if err := ask(ctx, path, v); err != nil {
			return err
		}
	}
	for i, kind := range []string{"attestation", "resource"} {
		var m struct{ Policy string }
		if err := ask(ctx, "/"+kind+"-policy", &m); err != nil {
			return err
		}
		text, err := base64.RawURLEncoding.DecodeString(m.Policy)
		if err != nil {
			return fmt.Errorf("the %s policy: %w", kind, err)
		}
		s.Policies[i] = policy{kind, string(text)}
	}
	return nil
}
