// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gen

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coco-shim/coco/policy/gen/filters"
)

const defaultCaps = "CAP_CHOWN CAP_SYS_CHROOT CAP_KILL"

// TestKnownFilters checks the table of RuntimeDefault's filters. COCO_FILTERS is a directory that tools/filters.sh has
// written: the table is made of it first.
func TestKnownFilters(t *testing.T) {
	if dir := os.Getenv("COCO_FILTERS"); dir != "" {
		writeFilters(t, dir)
		t.Skip("filters.json is written; run the test again without COCO_FILTERS")
	}
	digest := regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	text, err := os.ReadFile("filters/filters.json")
	var all []filters.Release
	if err == nil {
		err = json.Unmarshal(text, &all)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		for caps, d := range r.Filters {
			if !digest.MatchString(d) {
				t.Errorf("containerd %v, %q: digest %q", r.Releases, caps, d)
			}
		}
		if r.Filters[""] == r.Filters["CAP_SYS_CHROOT"] || r.Filters["CAP_SYS_ADMIN"] == r.Filters[""] {
			t.Errorf("containerd %v: capabilities change nothing", r.Releases)
		}
	}
	known := filters.Of(strings.Fields(defaultCaps))
	if len(known) < 10 {
		t.Errorf("the default capabilities have %d filters", len(known))
	}
	if got := filters.Of([]string{"CAP_CHOWN"}); len(got) < 10 || slices.Contains(got, known[0]) {
		t.Errorf("without SYS_CHROOT: %v", got)
	}
	if got := filters.Of([]string{"CAP_SYS_TIME", "CAP_SYS_BOOT"}); got != nil {
		t.Errorf("a combination that is not in the table: %v", got)
	}
	if got := filters.Name(known[0]); !strings.HasPrefix(got, "1.6.") {
		t.Errorf("the first filter is of releases %q", got)
	}
	if got := filters.Name("none"); got != "" {
		t.Errorf("no filter is of releases %q", got)
	}
}

// writeFilters makes the table: one entry for releases with the same filters.
func writeFilters(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(dir + "/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var out []filters.Release
	version := func(file string) string { return strings.TrimSuffix(filepath.Base(file), ".json") }
	number := func(file string) (n int) {
		for _, part := range strings.Split(version(file), ".") {
			i, err := strconv.Atoi(part)
			if err != nil {
				t.Fatalf("%s is not named after a release: %v", file, err)
			}
			n = n*1000 + i
		}
		return n
	}
	slices.SortFunc(files, func(a, b string) int { return number(a) - number(b) })
	for _, file := range files {
		text, err := os.ReadFile(file)
		var of map[string]json.RawMessage
		if err == nil {
			err = json.Unmarshal(text, &of)
		}
		if err != nil {
			t.Fatal(err)
		}
		r := filters.Release{Releases: []string{version(file)}, Filters: map[string]string{}}
		for caps, filter := range of {
			if r.Filters[caps], err = FilterDigest(filter); err != nil {
				t.Fatal(err)
			}
		}
		same := slices.IndexFunc(out, func(o filters.Release) bool { return sameFilters(o.Filters, r.Filters) })
		if same < 0 {
			out = append(out, r)
			continue
		}
		out[same].Releases = append(out[same].Releases, r.Releases...)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", " ")
	if err := enc.Encode(out); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("filters/filters.json", b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func sameFilters(a, b map[string]string) bool {
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return len(a) == len(b)
}
