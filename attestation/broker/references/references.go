// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package references keeps reference values: which claims belong to code and platforms that the operator trusts.
//
// Values lie in named sets, each with an end of its validity. A policy asks for a value by its name and gets the values
// of all sets that are valid, as one list: during an update the old set and the new one stand side by side. A value
// that is no list must be the same in all sets, or there is none.
package references

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Default is the set of messages that name none, as those of Trustee's clients.
const Default = "default"

// months is how long a set is valid if nothing else is said, as in Trustee.
const months = 12

// Set is a named set of values.
type Set struct {
	Name    string         `json:"set"`
	Expires time.Time      `json:"expires"`
	Values  map[string]any `json:"values"`
}

// Message registers values: Trustee's message of type "sample", or what coco measure --reference-values broker prints.
// Members set and expires are ours.
type Message struct {
	Version json.RawMessage `json:"version"`
	Type    string          `json:"type"`
	Payload string          `json:"payload,omitempty"`
	Values  []measured      `json:"values,omitempty"`
	Set     string          `json:"set,omitempty"`
	Expires *time.Time      `json:"expires,omitempty"`
}

// measured is one entry of coco measure.
type measured struct {
	Platform    string            `json:"platform"`
	Measurement string            `json:"measurement"`
	Registers   map[string]string `json:"registers"`
}

var (
	setName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$`)
	valueName = regexp.MustCompile(`^[A-Za-z0-9_./:-]{1,256}$`)
)

// Parse reads a message.
func Parse(b []byte, now time.Time) (Set, error) {
	s := Set{Name: Default, Expires: now.AddDate(0, months, 0).UTC()}
	var m Message
	if err := json.Unmarshal(b, &m); err != nil {
		return s, err
	}
	if m.Set != "" {
		s.Name = m.Set
	}
	if !setName.MatchString(s.Name) {
		return s, fmt.Errorf("%.80q is no name of a set", s.Name)
	}
	if m.Expires != nil {
		s.Expires = m.Expires.UTC()
	}
	var err error
	switch m.Type {
	case "sample":
		s.Values, err = sample(m.Payload)
	case "coco-reference-values":
		s.Values, err = ours(m.Values)
	default:
		err = fmt.Errorf("type %.40q: known are sample and coco-reference-values", m.Type)
	}
	if err == nil && len(s.Values) == 0 {
		err = errors.New("the message has no value")
	}
	for name := range s.Values {
		if !valueName.MatchString(name) {
			return s, fmt.Errorf("%.80q is no name of a reference value", name)
		}
	}
	return s, err
}

func sample(payload string) (map[string]any, error) {
	b, err := base64.StdEncoding.DecodeString(payload)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	var values map[string]any
	if err := json.Unmarshal(b, &values); err != nil {
		return nil, fmt.Errorf("payload: not a map of names to values: %w", err)
	}
	return values, nil
}

// ours gives measured values the names of Trustee's default policy.
func ours(list []measured) (map[string]any, error) {
	out := map[string]any{}
	add := func(name, value string) {
		have, _ := out[name].([]any)
		if value != "" && !slices.Contains(have, any(value)) {
			out[name] = append(have, value)
		}
	}
	for _, m := range list {
		switch m.Platform {
		case "snp":
			add("snp_launch_measurement", m.Measurement)
		case "tdx":
			for name, v := range m.Registers {
				add(map[string]string{"mrtd": "mr_td"}[name]+strings.Replace(rest(name), "rtmr", "rtmr_", 1), v)
			}
		case "vtpm", "tpm":
			for name, v := range m.Registers {
				add("tpm_"+name, v)
			}
		default:
			return nil, fmt.Errorf("platform %.40q: known are snp, tdx and vtpm", m.Platform)
		}
	}
	return out, nil
}

// rest is the name of a register that is no MRTD.
func rest(name string) string {
	if name == "mrtd" {
		return ""
	}
	return name
}

// Merge returns the set with values of another one put over its own, as Trustee registers them.
func (s Set) Merge(with Set) Set {
	out := Set{with.Name, with.Expires, map[string]any{}}
	maps.Copy(out.Values, s.Values)
	maps.Copy(out.Values, with.Values)
	return out
}

// Sets are all sets, by their names.
type Sets map[string]Set

// Get returns the value of a name in the sets that are valid.
func (s Sets) Get(name string, now time.Time) (any, bool) {
	var list []any
	var single any
	isList, found, clash := false, false, false
	for _, key := range slices.Sorted(maps.Keys(s)) {
		v, ok := s[key].Values[name]
		if !ok || !now.Before(s[key].Expires) {
			continue
		}
		if members, ok := v.([]any); ok {
			list, isList = append(list, members...), true
		} else {
			clash = clash || found && !reflect.DeepEqual(single, v)
			single, found = v, true
		}
	}
	switch {
	case isList && !found:
		return list, true
	case found && !isList && !clash:
		return single, true
	}
	return nil, false
}

// Names returns all names in valid sets.
func (s Sets) Names(now time.Time) []string {
	names := map[string]bool{}
	for _, set := range s {
		for name := range set.Values {
			names[name] = names[name] || now.Before(set.Expires)
		}
	}
	maps.DeleteFunc(names, func(_ string, valid bool) bool { return !valid })
	return slices.Sorted(maps.Keys(names))
}

// Expired returns the names of sets that have expired and hold one of these values under any name.
func (s Sets) Expired(values []string, now time.Time) []string {
	var out []string
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if now.Before(s[key].Expires) {
			continue
		}
		for _, v := range s[key].Values {
			list, _ := v.([]any)
			if slices.ContainsFunc(list, func(m any) bool { t, ok := m.(string); return ok && slices.Contains(values, t) }) {
				out = append(out, key)
				break
			}
		}
	}
	return out
}
