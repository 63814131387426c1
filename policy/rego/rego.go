// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rego compiles and evaluates the policies of a key broker, in Rego v1, as CoCo's Trustee does.
//
// An attestation policy gives claims a trust vector; a resource policy says whether a token may have a resource. Both
// belong to package policy. Nothing that is undefined, fails or takes too long allows anything. Policies reach neither
// the network nor the environment: those functions are taken out.
//
// The package links OPA, which is large. Only the command coco may import it.
package rego

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/storage"
	"github.com/open-policy-agent/opa/v1/storage/inmem"
	"github.com/open-policy-agent/opa/v1/types"
)

// Kind is a kind of policy.
type Kind string

// Kinds of policies.
const (
	Attestation Kind = "attestation"
	Resource    Kind = "resource"
)

const (
	maxText = 1 << 20
	timeout = 2 * time.Second

	queryReference = "query_reference_value"
)

// ErrTimeout says that a policy had no answer in time: it has an endless loop, or the machine is overloaded.
var ErrTimeout = fmt.Errorf("the policy has no answer within %v", timeout)

// rules are what a policy of a kind must define.
var rules = map[Kind]string{Attestation: "trust_claims", Resource: "allow"}

// Policy is a compiled policy. Its methods may be called by several goroutines.
type Policy struct {
	kind       Kind
	main       rego.PreparedEvalQuery
	extensions rego.PreparedEvalQuery
	data       storage.Store
}

// forbidden are prefixes of functions that reach out of the policy.
var forbidden = []string{"http.", "net.lookup", "opa.runtime", "rego.", "trace", "providers.", "io.jwt.", "graphql."}

// Compile checks a policy and prepares it.
func Compile(ctx context.Context, kind Kind, text string) (*Policy, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("the policy has more than %d bytes", maxText)
	}
	module, err := parse(text)
	if err != nil {
		return nil, err
	}
	if err := defines(module, kind); err != nil {
		return nil, err
	}
	p := &Policy{kind: kind, data: inmem.New()}
	if p.main, err = p.prepare(ctx, module, "data.policy."+rules[kind]); err != nil {
		return nil, err
	}
	if kind == Attestation {
		p.extensions, err = p.prepare(ctx, module, "data.policy.extensions")
	}
	return p, err
}

func parse(text string) (*ast.Module, error) {
	return ast.ParseModuleWithOpts("policy.rego", text, ast.ParserOptions{RegoVersion: ast.RegoV1})
}

// defines refuses policies that can never decide.
func defines(m *ast.Module, kind Kind) error {
	if m.Package.Path.String() != "data.policy" {
		return fmt.Errorf("the policy belongs to package %s, not to package policy",
			strings.TrimPrefix(m.Package.Path.String(), "data."))
	}
	var names []string
	for _, r := range m.Rules {
		names = append(names, r.Head.Ref().GroundPrefix().String())
	}
	want := rules[kind]
	if slices.Contains(names, want) {
		return nil
	}
	hint := ""
	if kind == Resource && slices.Contains(names, "allowed") {
		hint = `; it defines "allowed", which nothing reads`
	}
	return fmt.Errorf("the policy does not define %q%s", want, hint)
}

func (p *Policy) prepare(ctx context.Context, m *ast.Module, query string) (rego.PreparedEvalQuery, error) {
	c := ast.CapabilitiesForThisVersion()
	c.Builtins = slices.DeleteFunc(c.Builtins, func(b *ast.Builtin) bool {
		return slices.ContainsFunc(forbidden, func(prefix string) bool { return strings.HasPrefix(b.Name, prefix) })
	})
	return rego.New(
		rego.Query(query), rego.ParsedModule(m), rego.Capabilities(c), rego.Store(p.data),
		rego.SetRegoVersion(ast.RegoV1),
		rego.Function1(&rego.Function{
			Name: queryReference, Decl: types.NewFunction(types.Args(types.S), types.A), Nondeterministic: true,
		}, reference),
	).PrepareForEval(ctx)
}

// References returns the reference value of a name, or false. Values are those of package json.
type References func(name string) (any, bool)

// inContext is the key of References in a context.
type inContext struct{}

// reference is the function query_reference_value. A name without a value gives null.
func reference(c rego.BuiltinContext, name *ast.Term) (*ast.Term, error) {
	text, ok := name.Value.(ast.String)
	refs, _ := c.Context.Value(inContext{}).(References)
	if !ok || refs == nil {
		return ast.NullTerm(), nil
	}
	v, ok := refs(string(text))
	if !ok {
		return ast.NullTerm(), nil
	}
	value, err := ast.InterfaceToValue(v)
	if err != nil {
		return nil, err
	}
	return ast.NewTerm(value), nil
}

// eval returns the only value of a query, or false if it is undefined.
func (p *Policy) eval(
	ctx context.Context, q rego.PreparedEvalQuery, input any, opts ...rego.EvalOption,
) (any, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	rs, err := q.Eval(ctx, append(opts, rego.EvalInput(input))...)
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrTimeout, err)
	}
	if err != nil {
		return nil, false, err
	}
	if len(rs) != 1 || len(rs[0].Expressions) != 1 {
		return nil, false, nil
	}
	return rs[0].Expressions[0].Value, true, nil
}

// Allow asks a resource policy. Only the value true allows.
func (p *Policy) Allow(ctx context.Context, claims map[string]any, data map[string]any) (bool, error) {
	if p == nil || p.kind != Resource {
		return false, errors.New("no resource policy")
	}
	txn, err := p.data.NewTransaction(ctx, storage.WriteParams)
	if err != nil {
		return false, err
	}
	defer p.data.Abort(ctx, txn)
	if err := p.data.Write(ctx, txn, storage.ReplaceOp, storage.Path{}, data); err != nil {
		return false, err
	}
	v, _, err := p.eval(ctx, p.main, claims, rego.EvalTransaction(txn))
	return err == nil && v == true, err
}

// Appraisal is what an attestation policy says of claims.
type Appraisal struct {
	Vector     map[string]int `json:"vector"`
	Extensions any            `json:"extensions,omitempty"`
}

// Members are those of a trust vector: draft-ietf-rats-ar4si, section 2.3.4.
var Members = []string{
	"configuration", "executables", "file-system", "hardware", "instance-identity", "runtime-opaque", "sourced-data",
	"storage-opaque",
}

// Appraise asks an attestation policy. A policy that says nothing is an error.
func (p *Policy) Appraise(ctx context.Context, input map[string]any, refs References) (Appraisal, error) {
	var a Appraisal
	if p == nil || p.kind != Attestation {
		return a, errors.New("no attestation policy")
	}
	ctx = context.WithValue(ctx, inContext{}, refs)
	v, ok, err := p.eval(ctx, p.main, input)
	if err != nil {
		return a, err
	}
	claims, isMap := v.(map[string]any)
	if !ok || !isMap || len(claims) == 0 {
		return a, errors.New("trust_claims is undefined or no map: the policy has no opinion on this evidence")
	}
	a.Vector = map[string]int{}
	for name, value := range claims {
		text, _ := value.(json.Number)
		n, err := text.Int64()
		if err != nil || n < -127 || n > 127 {
			return a, fmt.Errorf("trust_claims: %.40s is %.40v, not a whole number from -127 to 127", name, value)
		}
		if !slices.Contains(Members, name) {
			return a, fmt.Errorf("trust_claims: %.40q is no member of a trust vector", name)
		}
		a.Vector[name] = int(n)
	}
	a.Extensions, _, err = p.eval(ctx, p.extensions, input)
	return a, err
}
