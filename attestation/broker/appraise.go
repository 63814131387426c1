// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/broker/evidence"
	"github.com/coco-shim/coco/attestation/kbs"
	"github.com/coco-shim/coco/internal/initdata"
	"github.com/coco-shim/coco/internal/version"
	"github.com/coco-shim/coco/policy/rego"
)

// Names of the token's claims: draft-ietf-rats-ear, and Trustee's.
const (
	annotated = "ear.veraison.annotated-evidence"
	profile   = "tag:github.com,2024:confidential-containers/Trustee"
	statusKey = "ear.status"
	vectorKey = "ear.trustworthiness-vector"
	policyKey = "ear.appraisal-policy-id"
	submodCPU = "cpu0"
)

// errDevices says that evidence of devices came. No verifier for them is here, and what is not verified gets no token.
var errDevices = errors.New("evidence of devices cannot be verified by this broker")

// verify verifies a message, and returns the input of policies.
func (b *Broker) verify(ctx context.Context, tee string, a *kbs.Attestation) (map[string]any, error) {
	digest, err := a.Digest()
	if err != nil {
		return nil, err
	}
	if a.Additional != "" && strings.TrimSpace(a.Additional) != "{}" {
		return nil, errDevices
	}
	var doc *initdata.Document
	var bound []byte
	if a.InitData != "" {
		if doc, err = initdata.FromText([]byte(a.InitData)); err != nil {
			return nil, fmt.Errorf("initdata: %w", err)
		}
		bound = doc.Digest()
	}
	claims, err := b.cfg.Evidence.Verify(ctx, tee, a.Primary, digest[:], bound)
	if err != nil {
		return nil, err
	}
	input := inputOf(tee, claims, doc)
	key, err := json.Marshal(a.Key)
	if err != nil {
		return nil, err
	}
	input["runtime_data_claims"] = map[string]any{
		"nonce": a.Nonce, "tee-pubkey": json.RawMessage(key), "additional-evidence": a.Additional,
	}
	return input, nil
}

// inputOf makes the input of an attestation policy, which is the token's annotated evidence too. init_data is the
// digest of the initdata that the evidence is bound to; without a document, the TEE's field.
func inputOf(tee string, claims *attestation.Claims, doc *initdata.Document) map[string]any {
	input := map[string]any{
		tee: claims.Details, "report_data": claims.ReportData.String(), "init_data": claims.InitData.String(),
	}
	if doc != nil {
		input["init_data"] = hex.EncodeToString(doc.Digest())
		input["init_data_claims"] = documentClaims(doc)
	}
	return input
}

// documentClaims are the files of an initdata document: configuration as JSON, of others their digest. The data of a
// policy for Kata's agent stands at its end.
func documentClaims(doc *initdata.Document) map[string]any {
	out := map[string]any{}
	for name, text := range doc.Data {
		var table map[string]any
		if strings.HasSuffix(name, ".toml") && toml.Unmarshal([]byte(text), &table) == nil {
			out[name] = table
			continue
		}
		sum := sha256.Sum256([]byte(text))
		out[name] = "sha256:" + hex.EncodeToString(sum[:])
		const mark = "policy_data := "
		if at := strings.LastIndex(text, mark); name == "policy.rego" && at >= 0 {
			var data map[string]any
			if json.Unmarshal([]byte(text[at+len(mark):]), &data) == nil {
				out["agent_policy_claims"] = data
			}
		}
	}
	return out
}

// tier returns the tier of a trust vector's value: draft-ietf-rats-ar4si, section 2.3.2.
func tier(v int) int {
	if v < 0 {
		v = -v - 1
	}
	switch {
	case v < 2:
		return 0 // none; 1 says that the verifier could not judge
	case v < 32:
		return 2
	case v < 96:
		return 32
	}
	return 96
}

var tierNames = map[int]string{0: "none", 2: "affirming", 32: "warning", 96: "contraindicated"}

// statusOf is the worst tier of a vector. Members that the policy does not set have no say.
func statusOf(vector map[string]int) string {
	worst := 0
	for _, v := range vector {
		if t := tier(v); t > worst {
			worst = t
		}
	}
	return tierNames[worst]
}

// appraise asks the attestation policy, and returns the claims of the token.
func (b *Broker) appraise(
	ctx context.Context, r rules, tee string, input map[string]any,
) (map[string]any, rego.Appraisal, error) {
	a, err := r.attestation.Appraise(ctx, input, b.reference(r.references))
	if err != nil {
		return nil, a, err
	}
	vector := map[string]int{}
	for _, name := range rego.Members {
		vector[name] = a.Vector[name]
	}
	part := map[string]any{
		statusKey: statusOf(a.Vector), vectorKey: vector, policyKey: "default", annotated: input,
	}
	if a.Extensions != nil {
		part["ear.trustee.extensions"] = a.Extensions
	}
	if n := evidence.Notice(tee); n != "" {
		part["ear.coco.notice"] = n
	}
	return map[string]any{
		"eat_profile":     profile,
		"ear.verifier-id": map[string]any{"developer": "coco", "build": "coco " + version.Version},
		"submods":         map[string]any{submodCPU: part},
	}, a, nil
}

// statusIn returns the status in the claims of a token.
func statusIn(claims map[string]any) string {
	parts, _ := claims["submods"].(map[string]any)
	part, _ := parts[submodCPU].(map[string]any)
	s, _ := part[statusKey].(string)
	return s
}

// keyIn returns the guest's key that a token names.
func keyIn(claims map[string]any) (*kbs.PublicKey, error) {
	at := any(claims)
	for _, name := range []string{"submods", submodCPU, annotated, "runtime_data_claims", "tee-pubkey"} {
		m, _ := at.(map[string]any)
		at = m[name]
	}
	text, err := json.Marshal(at)
	if err != nil {
		return nil, err
	}
	return kbs.ParsePublicKey(text)
}

// explain names what keeps a vector from being affirming, and sets that have expired with values of the evidence.
func (b *Broker) explain(r rules, a rego.Appraisal, input map[string]any) string {
	var parts []string
	for _, name := range rego.Members {
		if v, ok := a.Vector[name]; ok && tier(v) != 2 {
			parts = append(parts, fmt.Sprintf("%s is %s (%d)", name, tierNames[tier(v)], v))
		}
	}
	var values []string
	texts(input, &values)
	for _, set := range r.references.Expired(values, b.cfg.Now()) {
		parts = append(parts, fmt.Sprintf("set %q of reference values has its values and has expired", set))
	}
	return strings.Join(parts, "; ")
}

// texts collects all strings of a value.
func texts(v any, out *[]string) {
	switch v := v.(type) {
	case string:
		*out = append(*out, v)
	case map[string]any:
		for m := range maps.Values(v) {
			texts(m, out)
		}
	}
}
