// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package configs

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/coco-shim/coco/api/contract"
)

// WithAnnotations returns the configuration with the pod's overrides. An annotation under
// contract.ConfigPrefix that is unknown, or that runtime.enable_annotations does not name, is an error
// that names the annotation and the allow-list; annotations elsewhere are ignored. All problems are
// reported at once, with the class errdefs.ErrInvalidArgument.
func (c Config) WithAnnotations(annotations map[string]string) (Config, error) {
	var names []string
	for name := range annotations {
		if strings.HasPrefix(name, contract.ConfigPrefix) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return c, nil
	}
	sort.Strings(names)
	d := &decoder{cfg: c, set: map[string]origin{}}
	for _, name := range names {
		d.annotation(name, annotations[name])
	}
	d.validate()
	if len(d.problems) > 0 {
		errs := make([]error, len(d.problems))
		for i, p := range d.problems {
			errs[i] = p
		}
		return Config{}, fmt.Errorf("pod annotations: %w: %w", errdefs.ErrInvalidArgument, errors.Join(errs...))
	}
	return d.cfg, nil
}

func (d *decoder) annotation(name, value string) {
	key := strings.TrimPrefix(name, contract.ConfigPrefix)
	file := "annotation " + name
	allowed := d.cfg.Runtime.EnableAnnotations
	f, known := lookup(key)
	if !known || !slices.Contains(allowed, key) {
		what := "is not allowed"
		if !known {
			what = "is unknown"
		}
		expect := "none: runtime.enable_annotations is empty"
		if len(allowed) > 0 {
			expect = "one of runtime.enable_annotations: " + strings.Join(allowed, ", ")
		}
		d.add(Problem{File: file, What: what, Expect: expect})
		return
	}
	if what := assign(f.ptr(&d.cfg), fromText(f.ptr(&d.cfg), value)); what != "" {
		d.add(Problem{File: file, Key: key, What: what, Expect: f.rule.expect})
		return
	}
	d.set[key] = origin{file: file}
}

// fromText turns an annotation's text into the TOML value that its field wants; text that does not
// parse stays a string, which assign then refuses.
func fromText(dst any, text string) any {
	switch dst.(type) {
	case *int, *uint64:
		if n, err := strconv.ParseInt(text, 10, 64); err == nil {
			return n
		}
	case *bool:
		switch text {
		case "true":
			return true
		case "false":
			return false
		}
	}
	return text
}
