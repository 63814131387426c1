// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package initdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// New writes a document. The same files give the same text.
func New(algorithm string, files map[string]string) (*Document, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "version = %s\nalgorithm = %s\n\n[data]\n", quote(version), quote(algorithm))
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&b, "%s = %s\n", quote(name), text(files[name]))
	}
	d, err := FromText([]byte(b.String()))
	if err != nil {
		return nil, err
	}
	for name, want := range files {
		if d.Data[name] != want {
			return nil, fmt.Errorf("initdata: the file %s cannot be written as TOML: it is not UTF-8", clip(name))
		}
	}
	return d, nil
}

// Annotation is the value of a pod's annotation contract.KataInitdata, well compressed: Kubernetes bounds annotations.
func (d *Document) Annotation() (string, error) {
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err == nil {
		_, err = z.Write(d.Text)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return "", fmt.Errorf("compress initdata: %w", err)
	}
	if out.Len() > MaxCompressed {
		return "", fmt.Errorf("initdata has %d compressed bytes: at most %d are read", out.Len(), MaxCompressed)
	}
	return base64.StdEncoding.EncodeToString(out.Bytes()), nil
}

// text writes a file: as it is where TOML allows that, since people read it.
func text(s string) string {
	control := strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f })
	if control || strings.Contains(s, "'''") || strings.HasSuffix(s, "'") {
		return quote(s)
	}
	return "'''\n" + s + "'''"
}

// quote writes a basic string (TOML 1.0, "String").
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
