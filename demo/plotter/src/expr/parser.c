/* Recursive descent: sum > product > sign > power > atom; ^ binds to the right. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expr.h"

#define MAX_DEPTH 100

struct parser {
	struct lexer lexer;
	int depth;
	char *error;
	size_t size;
};

static const struct {
	const char *name;
	double (*function)(double);
} FUNCTIONS[] = {
	{ "sin", sin }, { "cos", cos }, { "tan", tan },	 { "exp", exp },
	{ "log", log }, { "abs", fabs }, { "sqrt", sqrt },
};

static struct node *sum(struct parser *parser);

static struct node *fail(struct parser *parser, const char *message)
{
	if (parser->error[0] == '\0')
		snprintf(parser->error, parser->size, "%s", message);
	return NULL;
}

static struct node *new_node(enum node_kind kind)
{
	struct node *node = calloc(1, sizeof(*node));

	if (!node)
		abort();
	node->kind = kind;
	return node;
}

static struct node *binary(char sign, struct node *left, struct node *right)
{
	struct node *node;

	if (!left || !right) {
		expr_free(left);
		expr_free(right);
		return NULL;
	}
	node = new_node(NODE_BINARY);
	node->sign = sign;
	node->left = left;
	node->right = right;
	return node;
}

static int accept(struct parser *parser, const char *signs)
{
	const struct token *token = &parser->lexer.now;
	char sign = token->sign;

	if (token->kind != TOKEN_SIGN || !strchr(signs, sign))
		return 0;
	lexer_next(&parser->lexer);
	return sign;
}

static struct node *parenthesis(struct parser *parser)
{
	struct node *inner;

	if (!accept(parser, "("))
		return fail(parser, "expected (");
	inner = sum(parser);
	if (inner && !accept(parser, ")")) {
		expr_free(inner);
		return fail(parser, "expected )");
	}
	return inner;
}

static struct node *named(struct parser *parser)
{
	char name[sizeof(parser->lexer.now.name)];
	struct node *node, *inner;
	size_t i;

	memcpy(name, parser->lexer.now.name, sizeof(name));
	lexer_next(&parser->lexer);
	if (strcmp(name, "x") == 0)
		return new_node(NODE_X);
	for (i = 0; i < sizeof(FUNCTIONS) / sizeof(FUNCTIONS[0]); i++) {
		if (strcmp(name, FUNCTIONS[i].name) != 0)
			continue;
		inner = parenthesis(parser);
		if (!inner)
			return NULL;
		node = new_node(NODE_CALL);
		node->function = FUNCTIONS[i].function;
		node->left = inner;
		return node;
	}
	return fail(parser, "unknown name");
}

static struct node *atom(struct parser *parser)
{
	struct node *node;

	switch (parser->lexer.now.kind) {
	case TOKEN_NUMBER:
		node = new_node(NODE_NUMBER);
		node->number = parser->lexer.now.number;
		lexer_next(&parser->lexer);
		return node;
	case TOKEN_NAME:
		return named(parser);
	case TOKEN_END:
		return fail(parser, "ends too early");
	default:
		return parenthesis(parser);
	}
}

static struct node *signed_power(struct parser *parser)
{
	struct node *node, *inner;

	if (++parser->depth > MAX_DEPTH)
		return fail(parser, "nested too deeply");
	if (accept(parser, "-")) {
		inner = signed_power(parser);
		node = inner ? new_node(NODE_NEGATE) : NULL;
		if (node)
			node->left = inner;
	} else {
		node = atom(parser);
		if (node && accept(parser, "^"))
			node = binary('^', node, signed_power(parser));
	}
	parser->depth--;
	return node;
}

static struct node *product(struct parser *parser)
{
	struct node *node = signed_power(parser);
	char sign;

	while (node && (sign = accept(parser, "*/")))
		node = binary(sign, node, signed_power(parser));
	return node;
}

static struct node *sum(struct parser *parser)
{
	struct node *node = product(parser);
	char sign;

	while (node && (sign = accept(parser, "+-")))
		node = binary(sign, node, product(parser));
	return node;
}

struct node *expr_parse(const char *text, char *error, unsigned long size)
{
	struct parser parser = { .error = error, .size = size };
	struct node *node;

	error[0] = '\0';
	lexer_start(&parser.lexer, text);
	node = sum(&parser);
	if (node && parser.lexer.now.kind != TOKEN_END) {
		expr_free(node);
		return fail(&parser, "goes on after its end");
	}
	return node;
}
