// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package deploy checks the files in deploy/ without a cluster.
package deploy

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/coco-shim/coco/tests/harness"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(harness.Root(), path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

var (
	metricName = regexp.MustCompile(`\bcoco_[a-z_]*[a-z]\b`)
	inSource   = regexp.MustCompile(`"(coco_[a-z_]*)"(\+(?:who)\+"([a-z_]+)")?`)
)

// metricNames are the names in the code that makes metrics. A test of each package holds what it says of them.
func metricNames(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, pattern := range []string{"virtcontainers/metrics.go", "agent/*.go", "cmd/coco/internal/pods/serve.go"} {
		files, err := filepath.Glob(filepath.Join(harness.Root(), pattern))
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, files, err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range inSource.FindAllStringSubmatch(string(text), -1) {
				if m[2] == "" {
					names = append(names, m[1])
					continue
				}
				for _, who := range []string{"shim", "vmm"} {
					names = append(names, m[1]+who+m[3])
				}
			}
		}
	}
	return names
}

// named checks that an expression names metrics, and only those that exist.
func named(t *testing.T, where, expr string, known []string) {
	t.Helper()
	found := metricName.FindAllString(expr, -1)
	if len(found) == 0 {
		t.Errorf("%s: %q names no metric", where, expr)
	}
	for _, name := range found {
		if !slices.Contains(known, name) {
			t.Errorf("%s: nothing makes the metric %s of %q", where, name, expr)
		}
	}
	for _, pair := range []string{"()", "{}", "[]"} {
		if strings.Count(expr, pair[:1]) != strings.Count(expr, pair[1:]) {
			t.Errorf("%s: %q has a bracket without its other half", where, expr)
		}
	}
}

func TestTheMetricsOfTheAlertsExist(t *testing.T) {
	known := metricNames(t)
	var file struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	dec := yaml.NewDecoder(strings.NewReader(read(t, "deploy/monitoring/alerts.yaml")))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		for _, r := range g.Rules {
			named(t, r.Alert, r.Expr, known)
			if r.Alert == "" || r.For == "" || r.Labels["severity"] == "" || r.Annotations["summary"] == "" ||
				r.Annotations["action"] == "" {
				t.Errorf("alert %q has no duration, severity, summary or action", r.Alert)
			}
		}
	}
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) < 5 {
		t.Errorf("alerts are %v", file.Groups)
	}
}

func TestTheMetricsOfTheDashboardExist(t *testing.T) {
	known := metricNames(t)
	var board struct {
		UID    string
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ RefID, Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "deploy/monitoring/grafana-dashboard.json")), &board); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d %q: its id is another's, or it has no title or query", p.ID, p.Title)
		}
		ids[p.ID] = true
		for _, q := range p.Targets {
			named(t, p.Title, q.Expr, known)
		}
	}
	if board.UID == "" || len(board.Panels) < 8 {
		t.Errorf("the dashboard has %d panels", len(board.Panels))
	}
}
