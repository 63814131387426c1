// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/coco-shim/coco/metrics"
	"github.com/coco-shim/coco/policy/decisions"
	"github.com/coco-shim/coco/virtcontainers"
)

const onePod = "# TYPE coco_pod_info gauge\ncoco_pod_info{pod=\"p1\",pod_name=\"web\",pod_namespace=\"default\"} 1\n"

func page(text string, err error) metrics.Page {
	return metrics.Page{
		Path: virtcontainers.DecisionsPage, Text: func(context.Context) (string, error) { return text, err },
	}
}

// TestDecisions: they come from the pod's shim, cleaned of what moves a terminal's cursor.
func TestDecisions(t *testing.T) {
	l := &decisions.Log{}
	l.Note("CreateContainer", "c1", "", errors.New("denied [value] web/a"))
	config, _ := servePod(t, onePod, page(l.Text()+`{"n":2,"times":1,"kind":"x`+"\x1b"+`"}`+"\n", nil))
	list, err := Decisions(t.Context(), config, "default/web")
	if err != nil || len(list) != 2 || list[0].String() != "1 CreateContainer c1: denied [value] web/a" ||
		list[1].String() != "2 x?: allowed" {
		t.Errorf("Decisions = %v, %v", list, err)
	}
}

func TestDecisionsThatAreNotThere(t *testing.T) {
	for want, p := range map[string]metrics.Page{
		"pod default/web: ask for its decisions: denied [capability]": page("", errors.New("denied [capability]")),
		"its guest's log of decisions":                                page("no JSON", nil),
	} {
		config, _ := servePod(t, onePod, p)
		if list, err := Decisions(t.Context(), config, "default/web"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Decisions = %v, %v, want %q", list, err, want)
		}
	}
	config, _ := servePod(t, onePod, page("", nil))
	if list, err := Decisions(t.Context(), config, "default/other"); err == nil {
		t.Errorf("of a pod that is not there: %v", list)
	}
}
