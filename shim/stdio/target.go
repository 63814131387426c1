// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package stdio

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

type kind int

const (
	kindPath   kind = iota // a FIFO, a device or an existing file
	kindFile               // a file that is made when absent and appended to
	kindBinary             // a logger process
)

// target is a parsed place for output.
type target struct {
	kind kind
	path string
	args []string // of a binary logger, in the order of the URI
}

// parseTarget reads what containerd has in the stdout and stderr fields: a plain path or a URI
// with scheme fifo, file or binary. A binary's query is its command line: `?a=b&c` is `a b c`.
func parseTarget(s string) (target, error) {
	scheme, _, found := strings.Cut(s, "://")
	if !found {
		return pathTarget(kindPath, s)
	}
	u, err := url.Parse(s)
	if err != nil {
		return target{}, fmt.Errorf("log URI %q: %w: %w", s, err, errdefs.ErrInvalidArgument)
	}
	if u.Host != "" {
		return target{}, fmt.Errorf("log URI %q names the host %q; write %s:///path: %w", s, u.Host, scheme,
			errdefs.ErrInvalidArgument)
	}
	switch u.Scheme {
	case "fifo":
		return pathTarget(kindPath, u.Path)
	case "file":
		return pathTarget(kindFile, u.Path)
	case "binary":
		t, err := pathTarget(kindBinary, u.Path)
		if err != nil {
			return target{}, err
		}
		t.args, err = queryArgs(u.RawQuery)
		if err != nil {
			return target{}, fmt.Errorf("log URI %q: %w: %w", s, err, errdefs.ErrInvalidArgument)
		}
		return t, nil
	}
	return target{}, fmt.Errorf("log URI %q: scheme %q is not fifo, file or binary: %w", s, u.Scheme,
		errdefs.ErrInvalidArgument)
}

func pathTarget(k kind, path string) (target, error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return target{}, fmt.Errorf("output path %q is not absolute: %w", path, errdefs.ErrInvalidArgument)
	}
	return target{kind: k, path: path}, nil
}

func queryArgs(raw string) ([]string, error) {
	var args []string
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		key, value, _ := strings.Cut(pair, "=")
		for _, part := range []string{key, value} {
			arg, err := url.QueryUnescape(part)
			if err != nil {
				return nil, err
			}
			if strings.ContainsRune(arg, 0) {
				return nil, fmt.Errorf("argument %q holds a zero byte", arg)
			}
			if arg != "" {
				args = append(args, arg)
			}
		}
	}
	return args, nil
}
