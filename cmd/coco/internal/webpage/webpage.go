// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package webpage has what coco's read-only pages have in common: how they look, and what a browser may do with them.
package webpage

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"html/template"
	"maps"
	"net/http"
)

//go:embed page.css
var style string

// policy allows nothing but the page's own style, named by its digest: no script, image, font, frame or form.
var policy = func() string {
	sum := sha256.Sum256([]byte(style))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}()

// Template parses a page. Its function "style" is the content of the page's style element.
func Template(text string, funcs template.FuncMap) *template.Template {
	all := template.FuncMap{
		"style": func() template.CSS { return template.CSS(style) }, //nolint:gosec // a file of ours
	}
	maps.Copy(all, funcs)
	return template.Must(template.New("page").Funcs(all).Parse(text))
}

// SetHeader sets the headers of a page.
func SetHeader(h http.Header) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", policy)
	h.Set("Referrer-Policy", "no-referrer")
}
